"""A whole decode against float64: the tolerance rule applied to what a swapped model gives in the end."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..ops.causal_conv3d.spec import error_factor
from .compare import Comparison, compare


@torch.no_grad()
def decode_in_float64(reference: nn.Module, latents: Tensor) -> Tensor:
    """Return what the unmodified model decodes in float64, its weights and latents taken as they are.

    Args:
        reference: The unmodified model.
        latents: Shape (B, C, l, h, w), any floating dtype.
    """
    # Nobody encodes, so that the encoder need not be there twice.
    oracle = nn.Module.double(copy.deepcopy(reference, {id(reference.encoder): None}))
    return oracle.decode(latents.double()).sample


def compare_decodes(got: Tensor, reference: Tensor, oracle: Tensor) -> Comparison:
    """Hold a decode against the one in float64.

    The factor is that of a single convolution, whatever the number of them: in float32 that of Winograd's
    algorithm, 8 over the norm, else 2.

    Args:
        got: What a swapped model decoded.
        reference: What the unmodified model decoded in the same dtype.
        oracle: What `decode_in_float64` gave.
    """
    return compare(got, reference, oracle, *error_factor(reference.dtype, winograd=True))
