"""The public ops; one folder each: public function, reference, spec, and a file per backend."""

from .causal_conv3d import causal_conv3d, causal_conv3d_
from .causal_pad3d import causal_pad3d, causal_pad3d_

__all__ = ["causal_conv3d", "causal_conv3d_", "causal_pad3d", "causal_pad3d_"]
