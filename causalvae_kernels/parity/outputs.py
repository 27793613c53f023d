"""Parity of outputs that are too large for a float64 oracle of the whole: what a benchmark times.

The oracle is computed for two windows, the first frames and rows and the last ones, and the tolerance rule is
applied to them. The whole output is held against that of a reference, row by row: two results that keep the
rule are no farther from each other than the sum of what each is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import CausalVAEError
from ..core.op import explain
from ..ops import causal_conv3d
from ..ops.causal_conv3d.spec import error_factor, long_sum_error, output_size, takes_winograd
from .compare import Comparison, compare, compare_exactly

# Of the reference's rounding errors beside its own output, each with the input channels in another order.
_DRAWS = 3

Providers = Mapping[str, Callable[[], Tensor]]


class ParityFailure(CausalVAEError):
    """A provider does not give the result; nothing was timed."""


@dataclass(frozen=True)
class _Window:
    frames: range
    rows: range

    def of(self, y: Tensor) -> Tensor:
        """The window of an output of shape (B, C, T, H, W), flattened."""
        piece = y[:, :, self.frames.start : self.frames.stop, self.rows.start : self.rows.stop]
        return piece.flatten()


class ConvOracle:
    """Windows of a causal convolution's output in float64; made once, asked for every provider.

    Args:
        call: Keyword arguments of `causal_conv3d`: x, weight, bias, stride; the modes are the defaults.
        backend: Backend of ours, as the op takes it; its algorithm decides the factor of the rule.
        frames: Output frames of the first window; the last one has half of them.
        rows: Output rows of both windows.
    """

    def __init__(
        self, call: Mapping[str, Any], *, backend: str | None = None, frames: int = 4, rows: int = 6
    ) -> None:
        x, weight, bias, stride = call["x"], call["weight"], call["bias"], tuple(call["stride"])
        size = output_size(x.shape, weight.shape[2:], stride, (1, 1, 1), "replicate", "zeros")
        time, height, _ = size
        last = max(frames // 2, 1)
        self._windows = (
            _Window(range(min(frames, time)), range(min(rows, height))),
            _Window(range(max(time - last, 0), time), range(max(height - rows, 0), height)),
        )
        with torch.no_grad():
            chosen = explain(causal_conv3d, **call, backend=backend).chosen
        winograd = chosen == "cpu" and takes_winograd(weight.shape, stride, (1, 1, 1), size)
        self._factor, self._factor_of_ours = error_factor(x.dtype), error_factor(x.dtype, winograd)
        self._long_sum, self._long_sum_of_ours = (
            long_sum_error(x.dtype, weight.shape, name) for name in ("aten", chosen)
        )

        def draw(dtype: torch.dtype, order: Tensor) -> Tensor:
            given = (x[:, order].to(dtype), weight[:, order].to(dtype), bias.to(dtype), stride)
            return self._gather(lambda window: _convolve(window, *given).flatten())

        channels = x.shape[1]
        self._oracle = draw(torch.float64, torch.arange(channels))
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(channels, generator=generator) for _ in range(_DRAWS)]
        self._draws = [draw(x.dtype, order) for order in orders]

    def compare(self, got: Tensor, reference: Tensor, *, any_order: bool = False) -> Comparison:
        """Apply the tolerance rule to the windows, and its consequence to every row of the whole.

        Args:
            got: A provider's output.
            reference: The output of the unmodified module in the same dtype and layout.
            any_order: For the framework's own convolutions, which are held against no output but the
                windows' own references.
        """
        if got.shape != reference.shape or got.dtype != reference.dtype:
            return compare_exactly(got, reference)
        pieces = [self._gather(lambda window, y=y: window.of(y)) for y in (got, reference)]
        references = self._draws if any_order else [pieces[1], *self._draws]
        factor = self._factor if any_order else self._factor_of_ours
        comparison = compare(pieces[0], references, self._oracle, *factor)
        comparison = comparison.allowing(*(self._long_sum if any_order else self._long_sum_of_ours))
        allowed = comparison.allowed * (1 + 1 / factor.norm)
        distance = _norm_of_rows(got.float() - reference.float()) / _norm_of_rows(reference.float())
        # Written so that a NaN is too far.
        far = (~(distance <= allowed)).nonzero()
        if comparison.passed and len(far):
            frame, row = far[0].tolist()
            complaint = (
                f"{len(far)} rows are too far from the reference; frame {frame}, row {row}: "
                f"{distance[frame, row]:.2e} (allowed {allowed:.2e})"
            )
            return replace(comparison, complaint=complaint)
        return comparison

    def _gather(self, piece: Callable[[_Window], Tensor]) -> Tensor:
        return torch.cat([piece(window) for window in self._windows])


def _norm_of_rows(y: Tensor) -> Tensor:
    """Return the norms over everything but frames and rows, shape (T, H), no zeros."""
    return y.square().sum(dim=(0, 1, 4)).sqrt().clamp_min(torch.finfo(torch.float32).tiny)


def _convolve(window: _Window, x: Tensor, weight: Tensor, bias: Tensor, stride: Sequence[int]) -> Tensor:
    """Return the window's output from no more input than it needs."""
    depth, *halo = weight.shape[2], weight.shape[3] // 2, weight.shape[4] // 2
    first, last = window.frames.start * stride[0] - (depth - 1), window.frames[-1] * stride[0]
    top, bottom = window.rows.start * stride[1] - halo[0], window.rows[-1] * stride[1] + halo[0] + 1
    frames = [max(t, 0) for t in range(first, last + 1)]
    height = x.shape[3]
    piece = x[:, :, frames, max(top, 0) : min(bottom, height)]
    piece = F.pad(piece, (halo[1], halo[1], max(-top, 0), max(bottom - height, 0)))
    modes = {"temporal_mode": "valid", "spatial_mode": "valid"}
    return causal_conv3d(piece, weight, bias, stride=stride, **modes, backend="reference")


def check_conv(
    oracle: ConvOracle, providers: Providers, references: Mapping[str, str], what: str
) -> dict[str, float]:
    """Run every provider of a convolution once and require parity.

    Args:
        oracle: Of the same call.
        providers: Name to callable; the first one is the unmodified module on contiguous tensors.
        references: For each provider of ours, the name of the unmodified module in the same layout, which
            comes before it. Providers that are not named here are the framework's own convolutions.
        what: Names workload and dtype in the message.

    Returns:
        The relative error of each against float64.

    Raises:
        ParityFailure: One of them is off.
    """
    errors: dict[str, float] = {}
    outputs: dict[str, Tensor] = {}
    first = next(iter(providers))
    for name, provider in providers.items():
        got = provider()
        if name in references.values() or name == first:
            outputs[name] = got
        reference = outputs[references.get(name, first)]
        comparison = oracle.compare(got, reference, any_order=name not in references)
        errors[name] = _passed(comparison, name, what).error
    return errors


def check_pad(providers: Providers, causal_padding: int, what: str) -> None:
    """Run every provider of a padding once and require the bits of the first one.

    Those that pad in place may return one storage: each result is looked at before the next provider runs,
    and its frames in front are spoilt, so that none passes with what another has written.

    Args:
        providers: Name to callable.
        causal_padding: How many frames they put in front.
        what: Names workload and dtype in the message.

    Raises:
        ParityFailure: One of them is off.
    """
    expected = None
    for name, provider in providers.items():
        got = provider()
        expected = got.clone() if expected is None else expected
        _passed(compare_exactly(got, expected), name, what)
        got[:, :, :causal_padding] = float("nan")


def _passed(comparison: Comparison, name: str, what: str) -> Comparison:
    if not comparison.passed:
        raise ParityFailure(f"no timing without parity: {name}, {what}: {comparison}")
    return comparison
