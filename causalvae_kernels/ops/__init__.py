"""The public ops; one folder each: public function, reference, spec, and a file per backend.

`norms` holds what the norm ops share.
"""

from .causal_conv3d import causal_conv3d
from .causal_pad3d import causal_pad3d, causal_pad3d_
from .group_norm_silu import group_norm_silu, group_norm_silu_
from .rms_norm_silu import rms_norm_silu, rms_norm_silu_
from .spatial_norm_silu import spatial_norm_silu, spatial_norm_silu_

__all__ = [
    "causal_conv3d",
    "causal_pad3d",
    "causal_pad3d_",
    "group_norm_silu",
    "group_norm_silu_",
    "rms_norm_silu",
    "rms_norm_silu_",
    "spatial_norm_silu",
    "spatial_norm_silu_",
]
