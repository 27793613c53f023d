"""The table and the picture of how a clip is run."""

import pytest
import torch

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.bench import peak_allocated
from tests.models.conftest import build  # noqa: F401  (a fixture)
from tests.support import wan_models
from tests.support.tiny_vaes import TINY_VAES


def test_the_steps_of_a_decode(build):  # noqa: F811
    vae = build()
    paths = dict(vae.decoder.named_modules())
    with swap(vae, backend="aten") as handle:
        shown = handle.schedule(17, 32, 48)
    assert [(p.runs, p.schedule.given[2]) for p in shown.passes] == [(1, 3), (1, 2)]
    for step in shown.passes[0].rows:
        assert step.path in paths, step
    convs = [r for r in shown.passes[0].rows if r.path.endswith((".conv1", ".conv2"))]
    assert all(r.what.startswith("causal_conv3d") and r.gflop > 0 for r in convs) and len(convs) > 10
    text = str(shown)
    assert "decode of 1x3x17x32x48 frames" in text and "mid_block.resnets.0.norm1" in text
    assert text.count("once") == 2 and "GFLOP" in text


def test_the_frames_of_an_encode_and_a_batch():
    vae = wan_models.build("2.1")
    with swap(vae, chunk="as_is") as handle:
        shown = handle.schedule(9, 16, 24, step="encode", batch=2)
    assert [(p.runs, p.schedule.given) for p in shown.passes] == [
        (1, (2, 3, 1, 16, 24)),
        (2, (2, 3, 4, 16, 24)),
    ]
    assert "calls the module" in str(shown)  # the attention
    assert not handle._link.coders.known, "the model itself was not read"


def test_the_arena_is_what_is_allocated(build):  # noqa: F811
    vae, z = build(), torch.randn(1, 16, 3, 8, 12)
    with swap(vae, backend="aten", memory="low") as handle:
        (only,) = handle.schedule(9, 64, 96).passes
        with torch.no_grad():
            vae.decode(z)
            assert peak_allocated(lambda: vae.decode(z)) >= only.schedule.size > 0


def test_a_picture(tmp_path, build):  # noqa: F811
    pytest.importorskip("matplotlib")
    with swap(build()) as handle:
        path = handle.schedule(9, 32, 48).draw(tmp_path / "memory.png")
    assert path.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["memory.png"]


def test_what_has_none(build):  # noqa: F811
    with swap(build()) as handle:
        with pytest.raises(InvalidInput, match="step is 'both'"):
            handle.schedule(9, 32, 48, step="both")
        with pytest.raises(InvalidInput, match="num_frames"):
            handle.schedule(0, 32, 48)
    with pytest.raises(InvalidInput, match="this swap was restored"):
        handle.schedule(9, 32, 48)
    with swap(build(), precision="exact") as handle, pytest.raises(InvalidInput, match="one by one"):
        handle.schedule(9, 32, 48)
    with swap(TINY_VAES["Mochi"].build()) as handle, pytest.raises(InvalidInput, match="one by one"):
        handle.schedule(7, 32, 48)


@pytest.mark.parametrize("change", ["forward", "configuration"])
def test_a_coder_that_is_left(change):
    vae = wan_models.build("2.1")
    if change == "forward":
        forward = vae.decoder.forward
        vae.decoder.forward = lambda *arguments, **keywords: forward(*arguments, **keywords)
    else:
        vae.decoder.norm_out.scale = 3.0
    with swap(vae) as handle, pytest.raises(InvalidInput, match="one by one"):
        handle.schedule(9, 32, 48)
