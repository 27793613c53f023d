"""The framework's 3D convolution, but for a shape that it is known to get wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Return `F.conv3d`; where a row has one output, what it sees is cut out, and needs no stride in width.

    oneDNN 3.12, which torch 2.13 brings, reads half precision with such a stride from the wrong places of its
    scratch on a processor with AMX (pytorch issue 169688): it takes a row of the padded input for stride
    times the kernel's width, and it is less. What lies there nobody wrote: other numbers, now and then NaN.
    """
    if stride[2] > 1 and x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        reach, sides = dilation[2] * (weight.shape[4] - 1) + 1, padding[2]
        if 0 <= x.shape[4] + 2 * sides - reach < stride[2]:
            x = (F.pad(x, (sides, sides)) if sides else x).narrow(4, 0, reach)
            stride, padding = (*stride[:2], 1), (*padding[:2], 0)
    return F.conv3d(x, weight, bias, stride, padding, dilation)
