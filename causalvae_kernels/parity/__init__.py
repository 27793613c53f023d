"""Parity: the tolerance rule, streams against the whole, outputs of a benchmark, a report for a machine."""

from .compare import Comparison, compare, compare_clips, compare_exactly
from .decode import compare_decodes, decode_in_float64
from .modules import check_module
from .norms import compare_norm
from .outputs import ConvOracle, ParityFailure, check_conv, check_pad
from .report import (
    ParityResult,
    compare_conv,
    compare_pad,
    compare_round_trips,
    round_trip,
    verify_ops,
    verify_vae,
)
from .resampling import compare_downsample, compare_upsample
from .stream import run_in_chunks

__all__ = [
    "Comparison",
    "ConvOracle",
    "ParityFailure",
    "ParityResult",
    "check_conv",
    "check_module",
    "check_pad",
    "compare",
    "compare_clips",
    "compare_conv",
    "compare_decodes",
    "compare_downsample",
    "compare_exactly",
    "compare_norm",
    "compare_pad",
    "compare_round_trips",
    "compare_upsample",
    "decode_in_float64",
    "round_trip",
    "run_in_chunks",
    "verify_ops",
    "verify_vae",
]
