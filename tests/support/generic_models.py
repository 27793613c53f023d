"""Convolution modules in the manner of other people's models, and a small VAE of them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PaddedConv(nn.Conv3d):
    """Is the convolution: pads time in front by a mode, space by another."""

    def __init__(self, cin, cout, kernel=(3, 3, 3), time="replicate", space="constant", **options):
        super().__init__(cin, cout, kernel, **options)
        self.time, self.space = time, space

    def forward(self, x: Tensor) -> Tensor:
        kt, kh, kw = self.kernel_size
        dt, dh, dw = self.dilation
        h, w = dh * (kh - 1) // 2, dw * (kw - 1) // 2
        x = F.pad(x, (w, w, h, h, 0, 0), mode=self.space)
        x = F.pad(x, (0, 0, 0, 0, dt * (kt - 1), 0), mode=self.time)
        return super().forward(x)


class HeldConv(nn.Module):
    """Holds the convolution; takes a cache, as streaming models do."""

    def __init__(self, cin, cout, kernel=3, **options):
        super().__init__()
        self.kernel = kernel
        self.inner = nn.Conv3d(cin, cout, kernel, padding=(0, kernel // 2, kernel // 2), **options)

    def forward(self, video: Tensor, cache: Tensor | None = None, scale: float = 1.0) -> Tensor:
        if cache is None:
            cache = video.new_zeros(*video.shape[:2], self.kernel - 1, *video.shape[3:])
        return self.inner(torch.cat([cache, video], dim=2)) * scale


class Stateful(PaddedConv):
    """Keeps the last frames, as MAGVIT does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.last = None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is not None:
            x = x + 0 * self.last.sum()
        self.last = x[:, :, -2:].clone()
        return super().forward(x)


class Counting(PaddedConv):
    """Keeps a state in a list, and behind a module's back."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return super().forward(x) * (1 + 0.1 * (Counting.calls % 7))


class Standardised(PaddedConv):
    """Convolves with other weights than its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1, 2, 0))
        return F.conv3d(x, self.weight - self.weight.mean(), self.bias)


class Symmetric(PaddedConv):
    """Looks at the next frame."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight, self.bias, padding=1)


class OddFirst(PaddedConv):
    """Does something else with a single frame."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.shape[2] == 1 else 1)


class Noisy(PaddedConv):
    """Draws random numbers, while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout3d(super().forward(x), 0.5, self.training)


class Upcasting(PaddedConv):
    """Gives float32, whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class Tuple(PaddedConv):
    """Returns its cache as well."""

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return super().forward(x), None


class Overwriting(PaddedConv):
    """Changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class WideOnly(PaddedConv):
    """Behaves otherwise with many channels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.weight.shape[1] > 8 else 1)


class NeedsCache(HeldConv):
    """Cannot be called with frames alone."""

    def forward(self, video: Tensor, cache: dict) -> Tensor:
        return super().forward(video, cache.get("last"))


class Float32Inside(HeldConv):
    """Knows float32 only."""

    def forward(self, video: Tensor) -> Tensor:
        return super().forward(video.float())


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.conv1 = PaddedConv(channels, channels)
        self.conv2 = HeldConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class Coder(nn.Module):
    """A half of the VAE."""

    def __init__(self, cin, channels, cout, stride):
        super().__init__()
        self.conv_in = PaddedConv(cin, channels, time="constant", space="reflect")
        self.block = Block(channels)
        self.resample = PaddedConv(channels, channels, stride=stride)
        self.conv_out = nn.Conv3d(channels, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.resample(self.block(self.conv_in(x))))


class OtherVAE(nn.Module):
    """Not of diffusers, but with its interface."""

    def __init__(self, channels=6):
        super().__init__()
        self.encoder, self.decoder = Coder(3, channels, 4, (2, 2, 2)), Coder(4, channels, 3, 1)

    def encode(self, x: Tensor) -> SimpleNamespace:
        latents = self.encoder(x)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, z: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.decoder(F.interpolate(z, scale_factor=(1, 2, 2))))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).latent_dist.mode()).sample


class Remembering(PaddedConv):
    """Reads what may be set later: with a default on the class, or with none at all."""

    past: Tensor | None = None
    weight_function: list = []  # noqa: RUF012
    options = (1.0, [2.0])

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.options[0] * getattr(self, "gain", 1.0)
        x = F.pad(x, (1, 1, 1, 1))
        past = x[:, :, :1].repeat(1, 1, 2, 1, 1) if self.past is None else self.past
        weight = self.weight
        for function in self.weight_function:
            weight = function(weight)
        return F.conv3d(torch.cat([past, x], dim=2), weight, self.bias) * (self.options[1][0] - 1)


class Configured(PaddedConv):
    """Reads an object that anybody may change."""

    config = SimpleNamespace(gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.config.gain


class Buffered(PaddedConv):
    """Has a buffer that a checkpoint may fill."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gain


class _Scaled(torch.autograd.Function):
    """The identity; its gradient is another."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return 30 * grad


class ScalesGradients(PaddedConv):
    """Scales the gradient of its input, as CogVideo SAT's first convolution does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Scaled.apply(x))


class DetachesItsPadding(PaddedConv):
    """No gradient goes through the repeated frame."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        return nn.Conv3d.forward(self, torch.cat([*[x[:, :, :1].detach()] * 2, x], dim=2))


class TrainsItsBiasOnly(PaddedConv):
    """Its weight gets no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        x = F.pad(x, (0, 0, 0, 0, 2, 0), mode="replicate")
        return F.conv3d(x, self.weight.detach(), self.bias)


class WithoutGradients(PaddedConv):
    """Records nothing."""

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class DetachesWhileTraining(PaddedConv):
    """Has another backward in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() if self.training else x)


class Alternating(PaddedConv):
    """Leaves the first frame out, every other time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Alternating.calls += 1
        return super().forward(x)[:, :, Alternating.calls % 2 :]


class WideForHalf(PaddedConv):
    """Gives float32 for half precision."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.float() if y.dtype == torch.bfloat16 else y


class Rescaling(HeldConv):
    """Writes its weight anew on every call, as power iterations do."""

    def forward(self, video: Tensor) -> Tensor:
        self.inner.weight.mul_(1.0)
        return super().forward(video)
