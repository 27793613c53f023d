"""Swap a model that is not from diffusers: causal convolutions with a list of caches, as in Wan's own code.

No class or module name here is known to the package. The decoder's own `forward` is recorded once for each
shape and then runs as a schedule; the caches in the list become its states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from causalvae_kernels import swap


class PastConv(nn.Conv3d):
    """A convolution that is given the last two frames of the chunk before, or pads with zeros."""

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        """Return as many frames as `x` has."""
        missing = 2
        if past is not None:
            x, missing = torch.cat([past, x], dim=2), missing - past.shape[2]
        return super().forward(F.pad(x, (1, 1, 1, 1, missing, 0)))


class ChannelNorm(nn.Module):
    """An RMS norm over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised frames."""
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


class Block(nn.Module):
    """Two convolutions and a residual; each convolution has a place in the list of caches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in range(2))
        self.convs = nn.ModuleList(PastConv(channels, channels, 3) for _ in range(2))

    def forward(self, x: Tensor, caches: list[Tensor | None], place: list[int]) -> Tensor:
        """Return the block's output, and leave its last frames in `caches`."""
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = F.silu(norm(y))
            last, past = y[:, :, -2:].clone(), caches[place[0]]
            if last.shape[2] < 2 and past is not None:
                last = torch.cat([past[:, :, -1:], last], dim=2)
            y, caches[place[0]] = conv(y, past), last
            place[0] += 1
        return x + y


class Decoder(nn.Module):
    """Blocks, twice the pixels, pixels."""

    def __init__(self, channels: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(channels) for _ in range(blocks))
        self.widen = nn.Conv2d(channels, channels, 3, padding=1)
        self.to_pixels = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor, caches: list[Tensor | None]) -> Tensor:
        """Return frames (B, 3, T, 2H, 2W)."""
        place = [0]
        for block in self.blocks:
            x = block(x, caches, place)
        batch, _, frames = x.shape[:3]
        images = x.transpose(1, 2).flatten(0, 1)
        images = F.interpolate(images, scale_factor=2, mode="nearest-exact")
        images = self.to_pixels(F.silu(self.widen(images)))
        return images.unflatten(0, (batch, frames)).transpose(1, 2)


class Model(nn.Module):
    """A decoder that is called chunk by chunk, one latent at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Decoder()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the frames of all chunks."""
        caches: list[Tensor | None] = [None] * 4
        return torch.cat([self.decoder(chunk, caches) for chunk in latents.split(1, dim=2)], dim=2)


@torch.no_grad()
def main() -> None:
    """Decode with the unmodified model and with the swapped one."""
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False)
    latents = torch.randn(1, 32, 4, 24, 24)
    expected = model.decode(latents)
    with swap(model) as handle:
        frames = model.decode(latents)
        print(handle)
    print(f"largest difference: {(frames - expected).abs().max():.2g}")
    torch.testing.assert_close(frames, expected, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main()
