"""The public ops; one folder each: public function, reference, spec, and a file per backend.

`norms` holds what the norm ops share.
"""

from .causal_conv3d import causal_conv3d
from .causal_pad3d import causal_pad3d, causal_pad3d_
from .downsample_conv import downsample_conv
from .group_norm import group_norm
from .rms_norm import rms_norm
from .spatial_norm import spatial_norm
from .upsample_conv import upsample_conv

__all__ = [
    "causal_conv3d",
    "causal_pad3d",
    "causal_pad3d_",
    "downsample_conv",
    "group_norm",
    "rms_norm",
    "spatial_norm",
    "upsample_conv",
]
