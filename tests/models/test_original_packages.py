"""The authors' own code, from the packages that carry it: recorded, read, and the same numbers."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import swap
from tests.support.original_packages import ORIGINALS

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_code_of_a_package(name):
    original = ORIGINALS[name]
    if not original.is_there:
        pytest.skip(f"{original.package} was not fetched: make original")
    torch.manual_seed(0)
    model = original.build()
    handle = swap(model)
    for frames, batch in ((1, 1), (2, 1), (3, 2), (5, 1)):
        z = torch.randn(batch, original.latents, frames, 3, 4)
        steps = [(original.decode, z)]
        if original.encode is not None:
            clip = torch.rand(batch, 3, 4 * frames - 3, 3 * original.ratio, 4 * original.ratio) * 2 - 1
            steps.append((original.encode, clip))
        for step, x in steps:
            found = []
            for active in (True, True, False):
                handle._link.active = active
                torch.manual_seed(1)
                with torch.no_grad():
                    found.append(step(model, x))
            handle._link.active = True
            assert torch.equal(found[0], found[1])
            error = (found[0] - found[2]).norm() / found[2].norm()
            assert error <= 3e-5, error
    assert {known.why for known in handle._link.coders.known.values()} == {""}
