"""Size classes of memory-bound ops, and the choice that `auto` makes by them, here for padding."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import FrameBuffer, causal_pad3d, causal_pad3d_, explain
from causalvae_kernels.core import native, tuned
from causalvae_kernels.core.size_class import ELEMENTS, class_words, nearest, size_classes, sizes_up_to
from causalvae_kernels.core.tuned import Measurement, Record, Tuned, architecture_of
from causalvae_kernels.ops.causal_pad3d import measurements
from causalvae_kernels.workloads import with_layout

LAST = "channels_last_3d"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, 0),
        (7, 0),
        (8, 16),
        (31, 16),
        (32, 64),
        (127, 64),
        (128, 256),
        (511, 256),
        (512, 1024),
        (2047, 1024),
        (1920 * 1080, 1024),
    ],
)
def test_the_nearest_size_on_a_logarithmic_scale(count, expected):
    sizes = (16, 64, 256, 1024)
    assert nearest(count, sizes) == expected
    assert sizes_up_to(count, sizes) == [n for n in reversed(sizes) if n <= expected]


def test_sizes_grow_by_four():
    assert [b // a for a, b in zip(ELEMENTS, ELEMENTS[1:], strict=False)] == [4] * (len(ELEMENTS) - 1)


def test_a_class_in_words_its_own_first_then_smaller_ones():
    x = torch.empty(1, 8, 2, 16, 16, dtype=torch.bfloat16)
    assert list(size_classes(x, written=20000)) == [
        "16-bit contiguous, 16384 elements",
        "16-bit contiguous, 4096 elements",
    ]
    last = with_layout(x, LAST)
    (*_, least) = found = list(size_classes(last, written=10**12, variant="in place"))
    assert found[0] == "16-bit channels_last_3d in place, 268435456+ elements"
    assert least == class_words(2, LAST, 4096, "in place") and len(found) == len(ELEMENTS)
    assert list(size_classes(x.double(), written=4096)) == ["64-bit contiguous, 4096 elements"]
    assert list(size_classes(x, written=2047)) == []


def test_memory_formats():
    def formats(*tensors):
        return {c.split(",")[0] for c in size_classes(*tensors, written=4096)}

    x = torch.empty(2, 8, 5, 6, 7)
    last = with_layout(x, LAST)
    assert formats(x) == formats(x[:, :, 1:]) == formats(x[:, :, :, 1:, 2:]) == {"32-bit contiguous"}
    assert formats(last) == formats(last[:, :, 1:]) == formats(last[..., 1:]) == {"32-bit channels_last_3d"}
    assert formats(last, last[:, :, :2]) == {"32-bit channels_last_3d"}
    for strided in (with_layout(x, "sliced"), with_layout(x, "permuted"), x.expand(2, 8, 5, 6, 7)[..., :1]):
        assert formats(strided) == set()
    # Where an axis has one element, its stride says nothing.
    single = torch.empty_strided((1, 8, 1, 6, 7), (5, 42, 3, 7, 1))
    assert formats(single) == {"32-bit contiguous"}
    assert formats(last, x) == set(), "what is read across the grain was not measured"


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Install measurements of padding for a CPU, as if the native module were there."""
    monkeypatch.setattr(native, "why_no_cpu", lambda: None)
    monkeypatch.setattr(native, "cpu_isa", lambda: "avx512")
    monkeypatch.setattr(native, "why_incomparable", lambda isa: None)

    def install(times: dict[str, tuple[float, float]]) -> None:
        rows = tuple(Measurement(c, "", *ms, 3, "cpu", "aten", "avx512") for c, ms in times.items())
        (tmp_path / "avx512.json").write_text(Record("cpu", "aten", "avx512", False, {}, rows).text())
        monkeypatch.setattr(measurements, "TUNED", Tuned(tmp_path))

    return install


def test_auto_pads_by_what_was_measured(measure):
    x = with_layout(torch.empty(1, 8, 4, 16, 16, dtype=torch.bfloat16), LAST)  # padded, 12,288 elements
    buffer = FrameBuffer(with_layout(torch.empty(1, 16, 4, 16, 16, dtype=torch.bfloat16), LAST), 2)
    measure({class_words(2, LAST, 16384): (1.0, 2.0), class_words(2, LAST, 4096, "in place"): (2.0, 1.0)})
    answer = explain(causal_pad3d, x, 2)
    assert answer.chosen == "cpu"
    assert "measured 2.00 times as fast as aten (1 against 2 ms for 16-bit channels_last_3d," in str(answer)
    answer = explain(causal_pad3d_, buffer)
    assert answer.chosen == "aten" and "in place, 4096 elements" in str(answer)
    measure({class_words(2, LAST, 4096): (1.0, 2.0), class_words(2, LAST, 4096, "in place"): (1.0, 2.0)})
    assert explain(causal_pad3d, x, 2).chosen == "cpu", "the largest measured speaks for larger ones"
    assert explain(causal_pad3d_, buffer).chosen == "cpu"
    assert explain(causal_pad3d_, FrameBuffer(buffer.storage[:, :8], 1)).chosen == "cpu", "2,048 elements"
    small = FrameBuffer(buffer.storage[:, :8, :, :15], 1)
    assert explain(causal_pad3d_, small).chosen == "aten", "1,920 elements"


def test_auto_pads_with_the_framework_what_was_not_measured(measure):
    x = torch.empty(1, 8, 4, 16, 16, dtype=torch.bfloat16)
    measure({class_words(2, LAST, 4096): (1.0, 2.0)})
    assert explain(causal_pad3d, with_layout(x, LAST), 2).chosen == "cpu"
    assert explain(causal_pad3d, x, 2).chosen == "aten"
    assert explain(causal_pad3d, with_layout(x, LAST).float(), 2).chosen == "aten"
    state = x[:, :, :2]
    assert explain(causal_pad3d, with_layout(x, LAST), 2, initial_state=state).chosen == "aten"
    assert explain(causal_pad3d, with_layout(x, LAST).to("meta"), 2).chosen == "aten"


def test_the_padded_frames_are_counted():
    x = torch.empty(2, 3, 4, 5, 6)
    assert measurements.written(x.shape, 2, (1, 0, 0, 2)) == causal_pad3d(x, 2, (1, 0, 0, 2)).numel()


def test_a_gpu_has_tables_of_its_own(tmp_path, monkeypatch):
    """A class is found in the file of the architecture; on another GPU of it, it says nothing."""
    cuda = torch.device("cuda")
    monkeypatch.setattr(tuned.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuned.torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(tuned.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert architecture_of(cuda) == "sm90"
    row = Measurement(class_words(2, LAST, 4096), "", 1.0, 2.0, 3, "triton", "aten", "sm90")
    record = Record("triton", "aten", "sm90", False, {"gpus": [{"name": "NVIDIA H200"}]}, (row,))
    (tmp_path / "sm90.json").write_text(record.text())
    x = torch.empty(1, 8, 4, 16, 16, dtype=torch.bfloat16, device="meta")
    classes = list(size_classes(with_layout(x, LAST), written=16384))
    assert Tuned(tmp_path).find("sm90", classes).faster
    monkeypatch.setattr(tuned.torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert not Tuned(tmp_path).find("sm90", classes).faster


def test_classes_are_not_worked_out_without_a_table(tmp_path):
    def classes():
        raise AssertionError("looked at")
        yield

    assert Tuned(tmp_path).find("avx512", classes()) is None
