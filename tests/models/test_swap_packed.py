"""What a swapped model keeps packed, and when it is freed."""

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from causalvae_kernels import InvalidInput, packed_size, release_packed_weights, swap
from causalvae_kernels.core import native
from causalvae_kernels.workloads import small_cogvideox_config

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))


def test_packed_weights_of_a_swap(build):
    release_packed_weights()
    vae = build()
    clip = torch.randn(1, 3, 1, 48, 48)
    handle = swap(vae, backend="cpu")
    expected = vae.encode(clip).latent_dist.mode()
    packed = packed_size()
    assert packed > 0
    vae.encode(clip)
    assert packed_size() == packed
    handle.refresh()
    assert packed_size() == 0
    assert torch.equal(vae.encode(clip).latent_dist.mode(), expected)
    handle.restore()
    assert packed_size() == 0
    with swap(vae, backend="cpu", packed_budget=packed // 2):
        vae.encode(clip)
        assert 0 < packed_size() <= packed // 2
    with pytest.raises(InvalidInput, match="swap: packed_budget is -1"):
        swap(vae, packed_budget=-1)
    swap(vae, backend="cpu")
    vae.encode(clip)
    del vae, handle
    gc.collect()
    assert packed_size() == 0, "the model is gone"


@pytest.fixture
def eager_collector():
    """Let the garbage collector run often, and cheaply: over what the test makes alone."""
    threshold = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()
    gc.set_threshold(20, 2, 2)
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def test_threads_that_load_swap_encode_and_drop_models(eager_collector):
    """Models are cycles, so the collector drops them, on whatever thread it runs."""
    release_packed_weights()
    config, clip = small_cogvideox_config(), torch.randn(1, 3, 1, 16, 16)

    def work(_):
        for _ in range(2):
            vae = diffusers.AutoencoderKLCogVideoX(**config).eval().requires_grad_(False)
            swap(vae, backend="cpu")
            vae.encode(clip)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    gc.collect()
    assert packed_size() == 0
