"""diffusers' norms and upsamplers beside our ops, as calls without arguments."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..core.errors import CausalVAEError
from ..core.op import explain
from ..ops.causal_conv3d.spec import ErrorFactor, LongSumError, error_factor, long_sum_error
from ..ops.upsample_conv import spec as upsample_spec
from ..ops.upsample_conv import upsample_conv
from ..workloads import NormWorkload, UpsampleWorkload, in_buffer
from .providers import CONV_BASELINES as BASELINES
from .providers import CONV_OURS, Provider

# In a swapped model the norm writes where the convolution reads: into storage that is there, channels last.
INTO = "ours into a buffer"
OURS = (*CONV_OURS, INTO)
_LAST = torch.channels_last_3d


@dataclass(frozen=True)
class Pair:
    """One result, diffusers' way and ours.

    Attributes:
        op: Name of our op.
        x: The frames, contiguous.
        module: diffusers', in the dtype of `x`.
        theirs: Takes the module and frames; returns the result.
        ours: Takes the frames and returns the result; its backend is chosen per call.
        into: Takes the frames and returns the result written into a buffer that is there; or None.
        backend: What runs ours on channels-last frames.
        factor: How many times the error of diffusers' ours may have.
        long_sum: What is allowed beside.
    """

    op: str
    x: Tensor
    module: nn.Module
    theirs: Callable[[nn.Module, Tensor], Tensor]
    ours: Callable[[Tensor], Tensor]
    into: Callable[[Tensor], Callable[[], Tensor]] | None
    backend: str
    factor: ErrorFactor
    long_sum: LongSumError

    def providers(self) -> dict[str, Provider]:
        """Return `BASELINES` and `OURS`, each returning the result without gradients."""
        last = self.x.contiguous(memory_format=_LAST)
        calls: dict[str, Provider] = {}
        for name, x in zip(BASELINES, (self.x, last), strict=True):
            calls[name] = lambda x=x: self.theirs(self.module, x)
        for name, x in zip(CONV_OURS, (self.x, last), strict=True):
            calls[name] = lambda x=x: self.ours(x)
        if self.into is not None:
            calls[INTO] = self.into(last)
        return {name: torch.no_grad()(call) for name, call in calls.items()}

    @torch.no_grad()
    def oracle(self) -> Tensor:
        """Return diffusers' result in float64."""
        return self.theirs(copy.deepcopy(self.module).double(), self.x.double())


def norm_pair(workload: NormWorkload, dtype: torch.dtype, seed: int, *, backend: str | None = None) -> Pair:
    """Return a norm and SiLU: diffusers' module, and our op with the module's parameters.

    Ours does what a swapped model does: the two convolutions of the spatial norm run at latent resolution.

    Raises:
        CausalVAEError: diffusers is not installed.
    """
    module, given = _NORMS[workload.op](workload)
    random = _Random(dtype, seed)
    random.fill(module)
    x = random(*workload.shape)
    latent = None if workload.latent is None else random(1, _LATENT_CHANNELS, *workload.latent)

    def theirs(module: nn.Module, x: Tensor) -> Tensor:
        y = module(x) if latent is None else module(x, latent.to(x.dtype))[0]
        return F.silu(y)

    norm = getattr(ops, workload.op)

    def call(x: Tensor) -> dict[str, Any]:
        return {"x": x, **given(module, latent), "backend": backend}

    def into(x: Tensor) -> Provider:
        buffer = in_buffer(torch.zeros_like(x), 2)

        def run() -> Tensor:
            norm(**call(x), out=buffer)
            return buffer.body

        return run

    with torch.no_grad():
        last = x.contiguous(memory_format=_LAST)
        chosen = explain(workload.op, **call(last)).chosen
    return Pair(
        op=workload.op,
        x=x,
        module=module,
        theirs=theirs,
        ours=lambda x: norm(**call(x)),
        into=into,
        backend=chosen,
        factor=error_factor(dtype),
        long_sum=LongSumError(0.0, 0.0),
    )


def upsample_pair(
    workload: UpsampleWorkload, dtype: torch.dtype, seed: int, *, backend: str | None = None
) -> Pair:
    """Return an upsampler with its convolution: diffusers' module, and our op with the module's weights.

    Raises:
        CausalVAEError: diffusers is not installed.
    """
    module, conv, options = _UPSAMPLERS[workload.family](workload)
    random = _Random(dtype, seed)
    random.fill(module)
    x = random(*workload.shape)
    weight = conv.weight if conv.weight.dim() == 5 else conv.weight.unsqueeze(2)
    call = {"weight": weight, "bias": conv.bias, "scale": workload.scale, "backend": backend, **options}
    with torch.no_grad():
        last = x.contiguous(memory_format=_LAST)
        chosen = explain(upsample_conv, last, **call).chosen
    winograd = chosen == "cpu" and upsample_spec.takes_winograd(weight.shape, workload.scale, x.shape[3:])
    return Pair(
        op="upsample_conv",
        x=x,
        module=module,
        theirs=lambda module, x: module(x),
        ours=lambda x: upsample_conv(x, **call),
        into=None,
        backend=chosen,
        factor=error_factor(dtype, winograd),
        long_sum=long_sum_error(dtype, weight.shape, chosen),
    )


_LATENT_CHANNELS = 16
_GROUPS, _EPS = 32, 1e-6


def _spatial_norm(workload: NormWorkload) -> tuple[nn.Module, Callable[..., dict[str, Any]]]:
    vae = _diffusers("autoencoders.autoencoder_kl_cogvideox")

    def given(module: nn.Module, latent: Tensor | None) -> dict[str, Any]:
        small = {"scale": module.conv_y.conv(latent), "shift": module.conv_b.conv(latent)}
        return small | _parameters(module.norm_layer)

    return vae.CogVideoXSpatialNorm3D(workload.channels, _LATENT_CHANNELS, _GROUPS), given


def _group_norm(workload: NormWorkload) -> tuple[nn.Module, Callable[..., dict[str, Any]]]:
    module = nn.GroupNorm(_GROUPS, workload.channels, eps=_EPS)
    return module, lambda module, latent: _parameters(module)


def _rms_norm(workload: NormWorkload) -> tuple[nn.Module, Callable[..., dict[str, Any]]]:
    vae = _diffusers("autoencoders.autoencoder_kl_wan")
    module = vae.WanRMS_norm(workload.channels, images=False)
    return module, lambda module, latent: {"weight": module.gamma}


def _parameters(norm: nn.GroupNorm) -> dict[str, Any]:
    return {"num_groups": norm.num_groups, "weight": norm.weight, "bias": norm.bias, "eps": norm.eps}


_NORMS = {
    "spatial_norm": _spatial_norm,
    "group_norm": _group_norm,
    "rms_norm": _rms_norm,
}


def _cogvideox(workload: UpsampleWorkload) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    upsampling = _diffusers("upsampling")
    doubles = workload.scale[0] == 2
    module = upsampling.CogVideoXUpsample3D(workload.channels, workload.out_channels, compress_time=doubles)
    return module, module.conv, {"first_chunk": workload.size[0] % 2 == 1}


def _wan(workload: UpsampleWorkload) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    vae = _diffusers("autoencoders.autoencoder_kl_wan")
    module = vae.WanResample(workload.channels, "upsample2d", upsample_out_dim=workload.out_channels)
    return module, module.resample[1], {}


def _hunyuanvideo(workload: UpsampleWorkload) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    vae = _diffusers("autoencoders.autoencoder_kl_hunyuan_video")
    module = vae.HunyuanVideoUpsampleCausal3D(
        workload.channels, workload.out_channels, upsample_factor=workload.scale
    )
    return module, module.conv.conv, {"spatial_mode": "replicate"}


_UPSAMPLERS = {"CogVideoX": _cogvideox, "Wan": _wan, "HunyuanVideo": _hunyuanvideo}


def _diffusers(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"diffusers.models.{name}")
    except ModuleNotFoundError as error:
        raise CausalVAEError(
            f"the benchmark compares with the package 'diffusers', which cannot be imported ({error}): pip "
            "install 'causalvae-kernels[diffusers]'"
        ) from error


class _Random:
    """Normal numbers of one dtype from one seed."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self._dtype, self._generator = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self._dtype)

    def fill(self, module: nn.Module) -> None:
        """Give a module weights that keep the variance, and no parameter that is zero or one."""
        module.eval().requires_grad_(False)
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.numel() > parameter.shape[0] else 1
            numbers = torch.randn(parameter.shape, generator=self._generator) / fan_in**0.5
            parameter.copy_(numbers + (1.0 if fan_in == 1 else 0.0))
        module.to(self._dtype)
