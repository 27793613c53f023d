"""What a swapped model keeps packed, and when it is freed."""

import gc

import pytest
import torch

from causalvae_kernels import InvalidInput, packed_size, release_packed_weights, swap
from causalvae_kernels.core import native

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
