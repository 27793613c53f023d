"""Parity of every op and of a swapped VAE on this machine, as rows of a report."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import int_tuple
from ..core.errors import BackendUnavailable
from ..core.op import Op, all_ops, explain
from ..ops import causal_conv3d, causal_pad3d, causal_pad3d_
from ..ops.causal_conv3d.spec import error_factor, long_sum_error, output_size, takes_winograd
from ..workloads import (
    CONV_CASES,
    DOWNSAMPLE_CASES,
    NORM_CASES,
    PAD_CASES,
    UPSAMPLE_CASES,
    in_buffer,
    make_conv_call,
    make_downsample_call,
    make_norm_call,
    make_pad_call,
    make_upsample_call,
    make_video,
)
from .compare import Comparison, compare, compare_clips, compare_exactly
from .draws import in_float64, reference_draws
from .norms import NORMS, compare_norm
from .resampling import compare_downsample, compare_upsample
from .stream import run_in_chunks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class ParityResult:
    """One row: a group of comparisons, its worst member shown.

    Attributes:
        name: What was compared.
        backend: The backend, or the tier of the swapped model.
        dtype: Name of the dtype.
        error: Relative error against the fp64 oracle of the member nearest to its limit.
        allowed: What the tolerance rule allows it.
        passed: Whether every member passed.
        detail: How many members, or which failed and how; for a backend that cannot run, its sentence.
        skipped: Nothing was compared, because the backend cannot run here.
    """

    name: str
    backend: str
    dtype: str
    error: float
    allowed: float
    passed: bool
    detail: str
    skipped: bool = False


def verify_ops(
    progress: Progress | None = None,
    *,
    quick: bool = False,
    seed: int | None = None,
    device: torch.device | str = "cpu",
) -> list[ParityResult]:
    """Compare every backend of every op with the reference on fresh random inputs.

    Args:
        progress: Called as `progress(done, total, name)` before each row.
        quick: float32 only.
        seed: Of the inputs; default: a fresh one.
        device: Where the ops run.
    """
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    dtypes = DTYPES[:1] if quick else DTYPES
    jobs = [
        (op, name, dtype)
        for op in all_ops()
        for name in op.backends
        if name != "reference"
        for dtype in dtypes
    ]
    rows = []
    for done, (op, backend, dtype) in enumerate(jobs):
        if progress:
            progress(done, len(jobs), f"{op.name} {backend} {_short(dtype)}")
        rows.append(
            _row(op.name, backend, dtype, lambda j=(op, backend, dtype): _compare_op(*j, seed, device))
        )
    if progress:
        progress(len(jobs), len(jobs), "done")
    return rows


def verify_vae(
    vae: nn.Module,
    swap: Callable[..., Any],
    progress: Progress | None = None,
    *,
    frame_counts: tuple[int, ...] = (1, 9, 16),
    size: tuple[int, int] = (32, 48),
    quick: bool = False,
    device: torch.device | str = "cpu",
) -> list[ParityResult]:
    """Compare encode and decode of a swapped VAE with the unmodified one.

    Args:
        vae: A diffusers VAE; it is copied, not changed.
        swap: `causalvae_kernels.swap` (handed in: this layer knows no models).
        progress: Called as `progress(done, total, name)` before each row.
        frame_counts: Frame counts to run.
        size: (height, width) of the frames in pixels.
        quick: float32 only.
        device: Where the models run, but for the one in float64.
    """
    oracle = copy.deepcopy(vae).to("cpu", torch.float64).eval()
    jobs = [(tier, dtype) for dtype in (DTYPES[:1] if quick else DTYPES) for tier in ("exact", "high")]
    rows = []
    for done, (tier, dtype) in enumerate(jobs):
        if progress:
            progress(done, len(jobs), f"{type(vae).__name__} {tier} {_short(dtype)}")
        model = copy.deepcopy(vae).to(device, dtype).eval()
        rows.append(
            _row(
                type(vae).__name__,
                f"swap, {tier}",
                dtype,
                lambda m=model, t=tier: _compare_vae(m, oracle, swap, t, frame_counts, size),
            )
        )
    if progress:
        progress(len(jobs), len(jobs), "done")
    return rows


def _row(
    name: str, backend: str, dtype: torch.dtype, comparisons: Callable[[], Iterator[tuple[str, Comparison]]]
) -> ParityResult:
    try:
        found = list(comparisons())
    except BackendUnavailable as error:
        reason = str(error).partition(" (decided by")[0]
        return ParityResult(name, backend, _short(dtype), 0.0, 0.0, True, reason, skipped=True)
    failed = [f"{case}: {c}" for case, c in found if not c.passed]
    nearest = max((c for _, c in found), key=lambda c: c.error / c.allowed if c.allowed else c.error)
    detail = "; ".join(failed) if failed else f"{len(found)} comparisons"
    return ParityResult(name, backend, _short(dtype), nearest.error, nearest.allowed, not failed, detail)


def _compare_op(
    op: Op, backend: str, dtype: torch.dtype, seed: int, device: torch.device | str
) -> Iterator[tuple[str, Comparison]]:
    """Compare every case that the backend can run, and where the op has `out`, once more into memory.

    Raises:
        BackendUnavailable: It can run none.
    """
    cases, ways = _cases_of(op, backend, dtype, seed, device)
    refusal, ran = None, False
    for case in cases:
        for compare_case in ways:
            try:
                comparison = compare_case(case)
            except BackendUnavailable as error:
                refusal = error
                continue
            ran = True
            yield case.name, comparison
    if not ran and refusal is not None:
        raise refusal
    if op.name == "causal_conv3d":
        yield "in chunks", _compare_chunks(dtype, backend, seed, device)


def _cases_of(
    op: Op, backend: str, dtype: torch.dtype, seed: int, device: torch.device | str
) -> tuple[Sequence[Any], list[Callable[[Any], Comparison]]]:
    """Return the cases of an op, and the ways to compare one of them."""
    given = (dtype, seed, device)
    if op.name == "causal_conv3d":
        return CONV_CASES, [
            lambda case, i=into: compare_conv(make_conv_call(case, *given), backend, in_place=i)
            for into in (False, True)
        ]
    if op.name in NORMS:
        return NORM_CASES, [
            lambda case, i=into: compare_norm(
                op.name, make_norm_call(op.name, case, *given), backend, in_place=i
            )
            for into in (False, True)
        ]
    if op.name == "downsample_conv":
        return DOWNSAMPLE_CASES, [lambda c: compare_downsample(make_downsample_call(c, *given), backend)]
    if op.name == "upsample_conv":
        return UPSAMPLE_CASES, [lambda c: compare_upsample(make_upsample_call(c, *given), backend)]
    return PAD_CASES, [lambda c: compare_pad(make_pad_call(c, *given), backend, in_place=op.in_place)]


def compare_conv(
    call: dict[str, Any], backend: str, precision: str = "high", *, in_place: bool = False
) -> Comparison:
    """Compare one call of `causal_conv3d`, with `in_place` into `out`, with the reference and the oracle."""
    choice = {"backend": backend, "precision": precision}
    if in_place:
        got = torch.empty_like(causal_conv3d(**call, backend="reference"))
        causal_conv3d(**call, **choice, out=got)
    else:
        got = causal_conv3d(**call, **choice)
    if precision == "exact":
        return compare_exactly(got, causal_conv3d(**call, backend="reference", precision=precision))
    references, oracle = reference_draws(causal_conv3d, call), in_float64(causal_conv3d, call)
    return _judge(got, references, oracle, call, backend, precision)


def _judge(
    got: Tensor,
    reference: Tensor | Sequence[Tensor],
    oracle: Tensor,
    call: dict[str, Any],
    backend: str,
    precision: str = "high",
) -> Comparison:
    """Apply the tolerance rule as the kernel that computes this call asks for it."""
    stride, dilation = (int_tuple("verify", name, call.get(name, 1), 3) for name in ("stride", "dilation"))
    modes = (call.get("temporal_mode", "replicate"), call.get("spatial_mode", "zeros"))
    weight_shape = call["weight"].shape
    size = output_size(call["x"].shape, weight_shape[2:], stride, dilation, *modes)
    chosen = explain("causal_conv3d", **call, backend=backend, precision=precision).chosen
    dtype, winograd = call["x"].dtype, takes_winograd(weight_shape, stride, dilation, size)
    comparison = compare(got, reference, oracle, *error_factor(dtype, chosen == "cpu" and winograd))
    return comparison.allowing(*long_sum_error(dtype, weight_shape, chosen))


def compare_pad(call: dict[str, Any], backend: str, *, in_place: bool) -> Comparison:
    """Compare one call of `causal_pad3d`, or of `causal_pad3d_` on the same frames, with the reference."""
    reference = causal_pad3d(**call, backend="reference")
    if not in_place:
        return compare_exactly(causal_pad3d(**call, backend=backend), reference)
    rest = dict(call)
    buffer = in_buffer(rest.pop("x"), rest.pop("causal_padding"), rest.pop("spatial_padding"))
    causal_pad3d_(buffer, **rest, backend=backend)
    return compare_exactly(buffer.storage, reference)


def _compare_chunks(dtype: torch.dtype, backend: str, seed: int, device: torch.device | str) -> Comparison:
    call = make_conv_call(CONV_CASES[0], dtype, seed, device)
    x, weight, bias = call["x"], call["weight"], call["bias"]

    def op(chunk: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
        return causal_conv3d(
            chunk,
            weight,
            bias,
            initial_state=initial_state,
            return_final_state=True,
            backend=backend,
            precision="high",
        )

    oracle = causal_conv3d(x.double(), weight.double(), bias.double(), backend="reference")
    reference = causal_conv3d(x, weight, bias, backend="reference")
    got, _ = run_in_chunks(op, x, (1, 1, x.shape[2] - 2))
    return _judge(got, reference, oracle, call, backend)


@torch.no_grad()
def _compare_vae(
    model: nn.Module,
    oracle: nn.Module,
    swap: Callable[..., Any],
    tier: str,
    frame_counts: tuple[int, ...],
    size: tuple[int, int],
) -> Iterator[tuple[str, Comparison]]:
    for frames in frame_counts:
        parameter = next(model.parameters())
        clip = make_video(frames, *size, seed=frames, dtype=parameter.dtype).to(parameter.device)
        # A backend by name, or the model's rules may leave inputs as small as these to the original.
        with swap(model, precision=tier, backend="aten"):
            swapped = round_trip(model, clip)
        for step, comparison in compare_round_trips(model, oracle, clip, swapped, exactly=tier == "exact"):
            yield f"{step}, {frames} frames", comparison


@torch.no_grad()
def round_trip(vae: nn.Module, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mode of the latents, and the frames decoded from it; of a batch, if need be one by one."""
    if type(vae).__name__ in _ONE_CLIP and clip.shape[0] > 1:
        latents, frames = zip(*(round_trip(vae, one) for one in clip.split(1)), strict=True)
        return torch.cat(latents), torch.cat(frames)
    latents = vae.encode(clip).latent_dist.mode()
    return latents, vae.decode(latents).sample


@torch.no_grad()
def compare_round_trips(
    reference: nn.Module,
    oracle: nn.Module,
    clip: Tensor,
    got: tuple[Tensor, Tensor],
    *,
    exactly: bool = False,
    by_clip: bool = False,
) -> Iterator[tuple[str, Comparison]]:
    """Compare latents and decoded frames with those of an unmodified model.

    Args:
        reference: The model without a swap.
        oracle: The same in float64.
        clip: Shape (B, 3, T, H, W), dtype of `reference`.
        got: What `round_trip` gave for the swapped model.
        exactly: Require equal bits.
        by_clip: In half precision, judge a batch of small clips by its medians (`compare_clips`).
    """
    latents, frames = round_trip(reference, clip)
    if exactly:
        yield "encode", compare_exactly(got[0], latents)
        yield "decode", compare_exactly(got[1], frames)
        return
    draws = [(latents, frames)]
    if type(reference).__name__ not in _ONE_CLIP:
        # A second draw of the reference's rounding errors: with two clips in the batch the framework takes
        # other convolution kernels; norms and everything else stay per clip.
        draws.append(tuple(t[: clip.shape[0]] for t in round_trip(reference, torch.cat([clip, clip]))))
    truth = round_trip(oracle, clip.double().to(next(oracle.parameters()).device))
    factor = error_factor(latents.dtype, winograd=True)
    judge = compare_clips if by_clip else compare
    for step, result, references, exact in zip(
        ("encode", "decode"), got, zip(*draws, strict=True), truth, strict=True
    ):
        yield step, judge(result, references, exact, *factor)


_ONE_CLIP = ("AutoencoderKLHunyuanVideo15",)
"""Models that fail at batches of more than one clip: this one's attention mask has no dimension for heads."""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
