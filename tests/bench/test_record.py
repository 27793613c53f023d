"""Records: the figures of a row by hand, and files that are whole."""

import json

import pytest
import torch

from causalvae_kernels.bench.plot import plot_record
from causalvae_kernels.bench.record import (
    geometric_mean,
    make_record,
    most_threads,
    pad_row,
    speedup,
    write_record,
)
from causalvae_kernels.bench.timing import Timing
from tests.support.records import LIMITS, WORKLOAD, conv, timings


def test_a_row_of_a_convolution():
    row = conv()
    assert (row["op"], row["workload"], row["dtype"]) == ("causal_conv3d", "2x3-4x5x6", "float32")
    assert row["flops"] == 2 * 2 * 3 * 27 * 4 * 5 * 6
    ours = row["providers"]["ours"]
    assert ours["p50_ms"] == 2.0 and ours["relative_error"] == 1e-7
    assert ours["gflops"] == pytest.approx(38880 / 2e-3 / 1e9)
    assert ours["percent_of_limit"] == pytest.approx(100 * ours["gflops"] / 0.01)
    # The median of 2, 4 and 6, not the ratio of the medians.
    assert row["speedup_p50"]["ours"] == {"diffusers": 4.0, "diffusers channels_last_3d": 1.0}
    assert row["speedup_p50"]["ours channels_last_3d"]["diffusers"] == 6.0


def test_a_row_of_a_padding():
    times = timings(**{"torch.cat": [6.0], "ours": [2.0]})
    row = pad_row(WORKLOAD, torch.bfloat16, times, threads=2, backend="aten", limits=LIMITS)
    # 2 + 4 frames against 2 frames of 2 x 5 x 6 elements of 2 bytes, read and written
    assert row["providers"]["torch.cat"]["bytes"] == 2 * 6 * 60 * 2
    assert row["providers"]["ours"]["bytes"] == 2 * 2 * 60 * 2
    assert row["bytes_ratio"] == 3.0 and row["speedup_p50"] == {"ours": {"torch.cat": 3.0}}
    assert row["providers"]["ours"]["gbps"] == pytest.approx(480 / 2e-3 / 1e9)
    assert row["providers"]["ours"]["percent_of_limit"] == pytest.approx(24.0)


def test_a_limit_that_was_not_measured_gives_no_percentage():
    row = conv(limits={"fma_gflops": None, "copy_gbps": 1.0})
    assert row["providers"]["ours"]["percent_of_limit"] is None


def test_means_and_choices():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert speedup(Timing("a", (2.0, 9.0, 4.0)), Timing("b", (1.0, 1.0, 1.0))) == 4.0
    rows = [conv(1), conv(2), conv(2)]
    assert most_threads(rows) == rows[1:] and most_threads([]) == []


def test_a_record_is_written_whole(tmp_path):
    record = make_record([conv()], {1: LIMITS})
    path = tmp_path / "record.json"
    write_record(path, record)
    read = json.loads(path.read_text())
    assert read["limits"] == {"1": LIMITS}
    assert read["rows"][0]["providers"]["ours"]["p50_ms"] == 2.0
    assert read["machine"]["versions"]["torch"] == torch.__version__
    assert set(read["machine"]) >= {"processor", "cores", "torch_isa", "native_isa", "python", "system"}
    assert list(tmp_path.iterdir()) == [path]

    with pytest.raises(ValueError):
        write_record(path, {**record, "rows": [float("nan")]})
    assert json.loads(path.read_text()) == read
    assert list(tmp_path.iterdir()) == [path]


def test_the_plot_is_a_png_with_a_panel_per_dtype(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    heights = []
    for dtypes in ([torch.float32], [torch.float32, torch.bfloat16]):
        record = make_record([conv(dtype=dtype) for dtype in dtypes], {1: LIMITS})
        plot_record(tmp_path / "plot.png", record)
        with Image.open(tmp_path / "plot.png") as image:
            assert image.format == "PNG"
            heights.append(image.height)
    assert heights[1] > 1.5 * heights[0]
