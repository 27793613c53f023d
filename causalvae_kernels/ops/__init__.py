"""The public ops; one folder each: public function, reference, spec, and a file per backend."""

from .causal_conv3d import causal_conv3d
from .causal_pad3d import causal_pad3d, causal_pad3d_
from .downsample_conv import downsample_conv
from .upsample_conv import upsample_conv

__all__ = ["causal_conv3d", "causal_pad3d", "causal_pad3d_", "downsample_conv", "upsample_conv"]
