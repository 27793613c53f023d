"""The authors' own code, as packages on PyPI carry it: `make original` fetches it, nothing is committed.

Only single files are imported, with stand-ins for what they name and do not need.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "build" / "original"


@dataclass(frozen=True)
class Original:
    """A model of one package.

    Attributes:
        package: Its folder, without which the test is left out.
        build: Returns a small model with random weights.
        encode: (model, video) to latents.
        decode: (model, latents) to video.
        latents: Channels of the latents.
        ratio: Pixels of a latent.
    """

    package: str
    build: Callable[[], nn.Module]
    encode: Callable[[Any, Tensor], Tensor] | None
    decode: Callable[[Any, Tensor], Tensor]
    latents: int = 4
    ratio: int = 8

    @property
    def is_there(self) -> bool:
        """Whether it was fetched."""
        return (FOLDER / self.package).is_dir()


def _load(path: str, **stand_ins: dict[str, Any]) -> Any:
    """Import a file by itself."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # for einops
    name = "original_" + path.removesuffix(".py").replace("/", "_")
    if name in sys.modules:
        return sys.modules[name]
    before = dict(sys.modules)
    for module, names in stand_ins.items():
        parts = module.split("__")
        for count in range(1, len(parts) + 1):
            made = sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
        for key, value in names.items():
            setattr(made, key, value)
    spec = importlib.util.spec_from_file_location(name, FOLDER / path)
    found = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(found)
    finally:
        for module in set(sys.modules) - set(before):
            if module.split(".")[0] in {m.split("__")[0] for m in stand_ins}:
                del sys.modules[module]
    sys.modules[name] = found
    return found


def _filled(model: nn.Module) -> nn.Module:
    """Give weights that leave nothing to chance: the code begins with zeros here and there."""
    for parameter in model.parameters():
        fan = parameter[0].numel() if parameter.dim() > 3 else 1
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape) * (fan**-0.5 if fan > 1 else 0.1))
            if fan == 1:
                parameter.add_(1.0)
    for buffer in model.buffers():  # statistics that a file of weights would bring
        buffer.fill_(1.0)
    return model.eval().requires_grad_(False)


_WAN = {
    "dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}
_SCALE = [torch.zeros(4), torch.ones(4)]


def _diffsynth() -> nn.Module:
    return _filled(_load("diffsynth/models/wan_video_vae.py").VideoVAE_(**_WAN))


def _diffsynth38() -> nn.Module:
    return _filled(_load("diffsynth/models/wan_video_vae.py").VideoVAE38_(**_WAN, dec_dim=8))


def _cosmos_predict2() -> nn.Module:
    log = types.SimpleNamespace(info=print)
    stand_ins = {
        "cosmos_predict2__tokenizers__interface": {"VideoTokenizerInterface": object},
        "imaginaire__utils": {"log": log},
        "imaginaire__utils__distributed": dict.fromkeys(("broadcast", "get_rank", "sync_model_states")),
        "imaginaire__utils__easy_io": {"easy_io": None},
    }
    module = _load("cosmos_predict2/tokenizers/tokenizer.py", **stand_ins)
    return _filled(module.VAE_(**_WAN))


def _ltx_video() -> nn.Module:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    from ltx_video.models.autoencoders.causal_video_autoencoder import CausalVideoAutoencoder

    blocks = [["res_x", 1], ["compress_all", {"residual": True, "multiplier": 2}]]
    config = {
        "_class_name": "CausalVideoAutoencoder",
        "dims": 3,
        "encoder_blocks": [["res_x", {"num_layers": 1}], ["compress_all_res", {"multiplier": 2}]],
        "decoder_blocks": blocks,
        "latent_channels": 4,
        "norm_layer": "pixel_norm",
        "patch_size": 4,
        "latent_log_var": "uniform",
        "use_quant_conv": False,
        "causal_decoder": False,
        "timestep_conditioning": True,
        "spatial_padding_mode": "reflect",
        "encoder_base_channels": 16,
        "decoder_base_channels": 16,
    }
    return _filled(CausalVideoAutoencoder.from_config(config))


def _ltx_core() -> nn.Module:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    from ltx_core.model.video_vae.video_vae import VideoDecoder

    blocks = [("res_x", {"num_layers": 1}), ("compress_all", {"residual": True, "multiplier": 2})]
    return _filled(VideoDecoder(3, 4, 3, decoder_blocks=blocks, base_channels=8))


def _by_list(model: Any, z: Tensor) -> Tensor:
    return model.decode(z, _SCALE)


def _with_a_step(model: Any, z: Tensor) -> Tensor:
    return model.decode(
        z,
        target_shape=(z.shape[0], 3, 2 * z.shape[2] - 1, 8 * z.shape[3], 8 * z.shape[4]),
        timestep=torch.full((z.shape[0],), 0.05),
        return_dict=False,
    )[0]


ORIGINALS = {
    "DiffSynth-Studio, Wan 2.1": Original(
        "diffsynth", _diffsynth, lambda m, x: m.encode(x, _SCALE), _by_list
    ),
    "DiffSynth-Studio, Wan 2.2": Original(
        "diffsynth", _diffsynth38, lambda m, x: m.encode(x, _SCALE), _by_list, ratio=16
    ),
    "cosmos-predict2": Original(
        "cosmos_predict2", _cosmos_predict2, lambda m, x: m.encode(x, _SCALE), _by_list
    ),
    "ltx-video": Original(
        "ltx_video", _ltx_video, lambda m, x: m.encode(x, return_dict=False)[0].mode(), _with_a_step
    ),
    "ltx-core": Original("ltx_core", _ltx_core, None, lambda m, z: m(z)),
}
