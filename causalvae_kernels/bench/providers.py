"""Providers of the same result, as calls without arguments: diffusers' own modules, and ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import BackendUnavailable, CausalVAEError, InvalidInput
from ..ops import causal_conv3d, causal_pad3d, causal_pad3d_
from ..workloads import ConvCase, Workload, in_buffer, make_conv_call
from .race import usable

CONV_BASELINES = ("diffusers", "diffusers channels_last_3d")
CONV_OURS = ("ours", "ours channels_last_3d")
# The unmodified module in the layout of each of ours.
CONV_REFERENCES = dict(zip(CONV_OURS, CONV_BASELINES, strict=True))
COMPILED = "diffusers torch.compile"
PAD_BASELINES = ("torch.cat",)
PAD_OURS = ("ours",)
# On a GPU every backend is a provider of its own; all of them take channels_last_3d.
GPU_BACKENDS = ("aten", "triton", "cuda")
GPU_REFERENCES = dict.fromkeys(GPU_BACKENDS, CONV_BASELINES[1])

Provider = Callable[[], Tensor]


def conv_call(
    workload: Workload, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return random keyword arguments of `causal_conv3d`: x, weight, bias, stride; contiguous."""
    options = {"stride": workload.stride}
    case = ConvCase(
        workload.name, workload.shape, workload.out_channels, workload.kernel_size, options=options
    )
    return make_conv_call(case, dtype, seed, device)


def conv_providers(
    call: dict[str, Any], *, backend: str | None = None, compiled: bool = False
) -> dict[str, Provider]:
    """Return every provider of the first chunk of a stream: no state, the first frame repeated in front.

    diffusers' causal convolution returns the frames that the next chunk needs beside its output; so do ours.

    Args:
        call: What `conv_call` gave. Copies of input and weight in channels_last_3d are made here, once.
        backend: Of ours; default: chosen per call.
        compiled: With diffusers' module under torch.compile, which is compiled here, for the present number
            of threads.

    Returns:
        Name to callable, each returning the output without gradients: `CONV_BASELINES`, `COMPILED` if asked
        for, `CONV_OURS`.

    Raises:
        BackendUnavailable: torch.compile cannot compile here.
        CausalVAEError: diffusers is not installed.
    """
    last = {**call, **{name: _channels_last(call[name]) for name in ("x", "weight")}}
    module = diffusers_module(call)
    providers = dict(
        zip(CONV_BASELINES, (_diffusers(module, call), _diffusers(diffusers_module(last), last)), strict=True)
    )
    if compiled:
        providers[COMPILED] = _compiled(module, call)
    return providers | {name: _ours(c, backend) for name, c in zip(CONV_OURS, (call, last), strict=True)}


def gpu_conv_providers(call: dict[str, Any], *, compiled: bool = False) -> dict[str, Provider]:
    """Return diffusers' module in both layouts, and each backend that can run this call on its GPU.

    Args:
        call: What `conv_call` gave for a GPU.
        compiled: As in `conv_providers`.

    Returns:
        Name to callable: `CONV_BASELINES`, `COMPILED` if asked for, some of `GPU_BACKENDS`.
    """
    providers = {n: p for n, p in conv_providers(call, compiled=compiled).items() if n not in CONV_OURS}
    last = {**call, **{name: _channels_last(call[name]) for name in ("x", "weight")}}
    return providers | {name: _ours(last, name) for name in usable(GPU_BACKENDS, "causal_conv3d", **last)}


def gpu_pad_providers(x: Tensor, causal_padding: int) -> tuple[dict[str, Provider], tuple[str, ...]]:
    """Return `torch.cat`, and each backend's two forms of padding on this GPU, in channels_last_3d.

    Args:
        x: Shape (B, C, T, H, W).
        causal_padding: How many first frames to put in front.

    Returns:
        Name to callable, "<backend> in place" and "<backend> copied"; and the names of the former.
    """
    x = _channels_last(x)
    buffer = in_buffer(x, causal_padding)
    providers = {PAD_BASELINES[0]: pad_providers(x, causal_padding)[PAD_BASELINES[0]]}

    def in_place(backend: str) -> Tensor:
        causal_pad3d_(buffer, backend=backend)
        return buffer.storage

    names = tuple(usable(GPU_BACKENDS, "causal_pad3d_", buffer))
    for name in names:
        providers[f"{name} in place"] = functools.partial(in_place, name)
        providers[f"{name} copied"] = functools.partial(causal_pad3d, x, causal_padding, backend=name)
    return providers, tuple(f"{name} in place" for name in names)


def pad_providers(x: Tensor, causal_padding: int, *, backend: str | None = None) -> dict[str, Provider]:
    """Return what puts repeated first frames in front: `torch.cat` as diffusers calls it, and ours in place.

    Ours starts where a swapped model does: with frames that were written into a `FrameBuffer`.

    Args:
        x: Shape (B, C, T, H, W), any strides.
        causal_padding: How many frames.
        backend: Of ours; default: chosen per call.

    Returns:
        Name to callable, each returning the padded frames.

    Raises:
        InvalidInput: There is nothing to pad.
    """
    if causal_padding < 1:
        raise InvalidInput(f"causal_pad3d: got {causal_padding} frames to put in front, expected at least 1")
    buffer = in_buffer(x, causal_padding)

    @torch.no_grad()
    def cat() -> Tensor:
        return torch.cat([x[:, :, :1]] * causal_padding + [x], dim=2)

    @torch.no_grad()
    def in_place() -> Tensor:
        causal_pad3d_(buffer, backend=backend)
        return buffer.storage

    return {PAD_BASELINES[0]: cat, PAD_OURS[0]: in_place}


def diffusers_module(call: dict[str, Any]) -> nn.Module:
    """Return what CogVideoX's VAE runs for a convolution of this shape, with these very weights.

    That is `CogVideoXCausalConv3d`; for a kernel of one frame `nn.Conv2d` over the frames, as in
    `CogVideoXUpsample3D`; for a single point `CogVideoXSafeConv3d`, as in the shortcuts.

    Raises:
        CausalVAEError: diffusers is not installed.
    """
    try:
        from diffusers.models.autoencoders import autoencoder_kl_cogvideox as cogvideox
    except ModuleNotFoundError as error:
        raise CausalVAEError(
            "the benchmark compares with the package 'diffusers', which cannot be imported "
            f"({error}): pip install 'causalvae-kernels[diffusers]'"
        ) from error
    weight, bias, stride = call["weight"], call["bias"], tuple(call["stride"])
    out_channels, in_channels, *kernel_size = weight.shape
    # On meta nothing is initialised; the weights are put in afterwards.
    with torch.device("meta"):
        if kernel_size[0] > 1:
            module = cogvideox.CogVideoXCausalConv3d(in_channels, out_channels, tuple(kernel_size), stride)
            convolution = module.conv
        elif kernel_size == [1, 1, 1]:
            module = convolution = cogvideox.CogVideoXSafeConv3d(in_channels, out_channels, 1, stride)
        else:
            padding = (kernel_size[1] // 2, kernel_size[2] // 2)
            convolution = nn.Conv2d(in_channels, out_channels, tuple(kernel_size[1:]), stride[1:], padding)
            module, weight = _OverFrames(convolution), weight[:, :, 0]
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(bias, requires_grad=False)
    return module.eval()


class _OverFrames(nn.Module):
    """A 2D convolution of each frame, reshaped as `CogVideoXUpsample3D` does it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x of shape (B, C, T, H, W)."""
        b, c, t, h, w = x.shape
        y = self.conv(x.permute(0, 2, 1, 3, 4).reshape(b * t, c, h, w))
        return y.reshape(b, t, *y.shape[1:]).permute(0, 2, 1, 3, 4)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _diffusers(module: nn.Module, call: dict[str, Any]) -> Provider:
    @torch.no_grad()
    def run() -> Tensor:
        result = module(call["x"])
        return result[0] if isinstance(result, tuple) else result

    return run


def _compiled(module: nn.Module, call: dict[str, Any]) -> Provider:
    # Workloads differ in shape alone: with what was compiled for the others still there, the second would be
    # compiled for any size, and the ninth not at all.
    torch.compiler.reset()
    run = _diffusers(torch.compile(module, dynamic=False), call)
    try:
        run()
    except RuntimeError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BackendUnavailable(
            f"torch.compile cannot compile diffusers' module here ({reason}): install a C++ compiler, or "
            "measure without torch.compile"
        ) from error
    return run


def _ours(call: dict[str, Any], backend: str | None) -> Provider:
    with_state = call["weight"].shape[2] > 1

    @torch.no_grad()
    def run() -> Tensor:
        result = causal_conv3d(**call, return_final_state=with_state, backend=backend)
        return result[0] if with_state else result

    return run
