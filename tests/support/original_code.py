"""Small VAEs in the manner of the authors' own code: caches in lists and on modules, padding by hand.

Nothing here is anybody's code. Each keeps to one way in which the real ones differ from diffusers': a list of
caches that is passed along (Wan), caches on the convolutions (CogVideoX), padding of all axes at once
(HunyuanVideo), frames on both sides, noise and a time step (LTX).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def images(x: Tensor) -> Tensor:
    """Return the frames of a video as images."""
    return x.permute(0, 2, 1, 3, 4).reshape(-1, x.shape[1], *x.shape[3:])


def video(x: Tensor, batch: int) -> Tensor:
    """Return images as a video again."""
    return x.reshape(batch, -1, *x.shape[1:]).permute(0, 2, 1, 3, 4)


class ListConv(nn.Conv3d):
    """Pads by itself, behind a past that it is given."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=(0, 0, 0)):
        super().__init__(inputs, outputs, kernel, stride)
        self.around = (padding[2], padding[2], padding[1], padding[1], 2 * padding[0], 0)

    def forward(self, x, past=None):
        around = list(self.around)
        if past is not None and around[4]:
            x = torch.cat([past, x], 2)
            around[4] -= past.shape[2]
        return super().forward(F.pad(x, around))


class Rms(nn.Module):
    """A norm over channels; of videos or of images."""

    def __init__(self, channels, dims=5, bias=False):
        super().__init__()
        shape = (channels, *(1,) * (dims - 2))
        self.gamma = nn.Parameter(torch.rand(shape) + 0.5)
        self.shift = nn.Parameter(torch.randn(shape)) if bias else 0.0

    def forward(self, x):
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma + self.shift


def remember(x, caches, at):
    """Return the last two frames, counting those of the chunk before."""
    last = x[:, :, -2:].clone()
    if last.shape[2] < 2 and caches[at] is not None:
        last = torch.cat([caches[at][:, :, -1].unsqueeze(2).to(last.device), last], dim=2)
    return last


class ListBlock(nn.Module):
    """A residual block whose convolutions have places in the list."""

    def __init__(self, inputs, outputs):
        super().__init__()
        conv = lambda a, b: ListConv(a, b, 3, padding=(1, 1, 1))  # noqa: E731
        self.layers = nn.Sequential(
            *(Rms(inputs), nn.SiLU(), conv(inputs, outputs)),
            *(Rms(outputs, bias=True), nn.SiLU(), nn.Dropout(0.1), conv(outputs, outputs)),
        )
        self.past_it = ListConv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x, caches=None, place=[0]):  # noqa: B006
        y = self.past_it(x)
        for layer in self.layers:
            if isinstance(layer, ListConv) and caches is not None:
                last = remember(x, caches, place[0])
                x = layer(x, caches[place[0]])
                caches[place[0]] = last
                place[0] += 1
            else:
                x = layer(x)
        return x + y


class ListUp(nn.Module):
    """Twice the pixels, and twice the frames but for the first one."""

    def __init__(self, channels):
        super().__init__()
        up = nn.Upsample(scale_factor=2.0, mode="nearest-exact")
        self.space = nn.Sequential(up, nn.Conv2d(channels, channels // 2, 3, padding=1))
        self.time = ListConv(channels, 2 * channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x, caches=None, place=[0]):  # noqa: B006
        batch, channels, frames, height, width = x.shape
        if caches is not None:
            at = place[0]
            place[0] += 1
            if caches[at] is None:
                caches[at] = "first"
            else:
                last = x[:, :, -2:].clone()
                if last.shape[2] < 2:
                    before = torch.zeros_like(last) if caches[at] == "first" else caches[at][:, :, -1:]
                    last = torch.cat([before, last], dim=2)
                x = self.time(x) if caches[at] == "first" else self.time(x, caches[at])
                caches[at] = last
                x = x.reshape(batch, 2, channels, frames, height, width)
                x = torch.stack((x[:, 0], x[:, 1]), 3).reshape(batch, channels, 2 * frames, height, width)
        return video(self.space(images(x)), batch)


class ListDown(nn.Module):
    """Half the pixels, and half the frames but for the first one."""

    def __init__(self, channels):
        super().__init__()
        self.space = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time = ListConv(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x, caches=None, place=[0]):  # noqa: B006
        x = video(self.space(images(x)), x.shape[0])
        if caches is not None:
            at = place[0]
            place[0] += 1
            if caches[at] is None:
                caches[at] = x.clone()
            else:
                last = x[:, :, -1:].clone()
                x = self.time(torch.cat([caches[at][:, :, -1:], x], 2))
                caches[at] = last
        return x


class ImageAttention(nn.Module):
    """Each frame looks at itself."""

    def __init__(self, channels):
        super().__init__()
        self.norm, self.qkv = Rms(channels, dims=4), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        batch, channels, _, height, width = x.shape
        y = self.qkv(self.norm(images(x)))
        y = y.reshape(y.shape[0], 1, 3 * channels, -1).permute(0, 1, 3, 2).contiguous()
        y = F.scaled_dot_product_attention(*y.chunk(3, dim=-1))
        y = self.out(y.squeeze(1).permute(0, 2, 1).reshape(-1, channels, height, width))
        return video(y, batch) + x


class ListCoder(nn.Module):
    """An encoder or decoder."""

    def __init__(self, inputs, outputs, channels, up, gives_all=False):
        super().__init__()
        wide, self.gives_all = 2 * channels, gives_all
        self.begin = ListConv(inputs, wide if up else channels, 3, padding=(1, 1, 1))
        middle = (ListBlock(wide, wide), ImageAttention(wide))
        if up:
            layers = (*middle, ListUp(wide), ListBlock(channels, channels))
        else:
            layers = (ListBlock(channels, wide), ListDown(wide), *middle)
        self.layers = nn.Sequential(*layers)
        last = channels if up else wide
        self.end = nn.Sequential(Rms(last), nn.SiLU(), ListConv(last, outputs, 3, padding=(1, 1, 1)))

    def forward(self, x, caches=None, place=[0]):  # noqa: B006
        for layer in (self.begin, *self.layers, *self.end):
            if isinstance(layer, ListConv) and caches is not None:
                last = remember(x, caches, place[0])
                x = layer(x, caches[place[0]])
                caches[place[0]] = last
                place[0] += 1
            elif caches is not None and isinstance(layer, (ListBlock, ListUp, ListDown)):
                x = layer(x, caches, place)
            else:
                x = layer(x)
        return (x, caches, place) if self.gives_all else x


class ListVAE(nn.Module):
    """In the manner of Wan: frames 1, 2, 2, ..., latents one by one."""

    def __init__(self, channels=8, gives_all=False):
        super().__init__()
        self.encoder = ListCoder(3, 4, channels, up=False, gives_all=gives_all)
        self.decoder = ListCoder(4, 3, channels, up=True, gives_all=gives_all)

    def encode(self, x):
        return self._loop(
            self.encoder, [x[:, :, :1], *x[:, :, 1:].split(2, dim=2)] if x.shape[2] > 1 else [x]
        )

    def decode(self, z):
        return self._loop(self.decoder, z.split(1, dim=2))

    def _loop(self, coder, chunks):
        caches = [None] * sum(isinstance(m, ListConv) for m in coder.modules())
        done = []
        for chunk in chunks:
            y = coder(chunk, caches, [0])
            if coder.gives_all:
                y, caches, _ = y
            done.append(y)
        return torch.cat(done, 2)


class KeepingConv(nn.Module):
    """Keeps its past on itself."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.span, self.conv, self.past = kernel - 1, nn.Conv3d(inputs, outputs, kernel), None

    def forward(self, x, last=True):
        if self.span:
            x = x.transpose(0, 2)
            front = [x[:1]] * self.span if self.past is None else [self.past.transpose(0, 2)]
            x = torch.cat([*front, x], dim=0).transpose(0, 2).contiguous()
        self.past = None if last or not self.span else x[:, :, -self.span :].contiguous().detach().clone()
        around = self.conv.kernel_size[1] // 2
        return self.conv(F.pad(x, (around,) * 4, mode="constant", value=0))


class KeepingNorm(nn.Module):
    """A group norm, scaled and shifted by the latents."""

    def __init__(self, channels, latents):
        super().__init__()
        self.norm = nn.GroupNorm(4, channels, eps=1e-6)
        self.scale, self.shift = KeepingConv(latents, channels, 1), KeepingConv(latents, channels, 1)

    def forward(self, x, z):
        if x.shape[2] > 1 and x.shape[2] % 2:
            first = F.interpolate(z[:, :, :1], size=(1, *x.shape[3:]), mode="nearest")
            rest = F.interpolate(z[:, :, 1:], size=(x.shape[2] - 1, *x.shape[3:]), mode="nearest")
            z = torch.cat([first, rest], dim=2)
        else:
            parts = [F.interpolate(part, size=x.shape[2:], mode="nearest") for part in z.split(2, dim=1)]
            z = torch.cat(parts, dim=1)
        return self.norm(x) * self.scale(z) + self.shift(z)


class KeepingBlock(nn.Module):
    """Norms by latents, and a swish written out."""

    def __init__(self, inputs, outputs, latents):
        super().__init__()
        self.norm1, self.conv1 = KeepingNorm(inputs, latents), KeepingConv(inputs, outputs, 3)
        self.norm2, self.conv2 = KeepingNorm(outputs, latents), KeepingConv(outputs, outputs, 3)
        self.short = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, z, last=True):
        y = self.norm1(x, z)
        y = self.conv1(y * torch.sigmoid(y), last=last)
        y = self.norm2(y, z)
        y = self.conv2(y * torch.sigmoid(y), last=last)
        return (x if self.short is None else self.short(x)) + y


class KeepingDecoder(nn.Module):
    """In the manner of CogVideoX."""

    def __init__(self, channels=8, latents=4):
        super().__init__()
        self.begin = KeepingConv(latents, 2 * channels, 3)
        self.block1 = KeepingBlock(2 * channels, channels, latents)
        self.up = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = KeepingBlock(channels, channels, latents)
        self.end = KeepingConv(channels, 3, 3)

    def forward(self, z, last=True):
        self.last_shape = z.shape
        x = self.block1(self.begin(z, last=last), z, last=last)
        batch = x.shape[0]
        if x.shape[2] > 1:
            first, rest = x[:, :, 0], x[:, :, 1:]
            first = F.interpolate(first, scale_factor=2.0, mode="nearest")
            rest = F.interpolate(rest, scale_factor=2.0, mode="nearest")
            x = torch.cat([first[:, :, None, :, :], rest], dim=2)
        else:
            x = video(F.interpolate(images(x), scale_factor=2.0, mode="nearest"), batch)
        x = video(self.up(images(x)), batch)
        return self.end(F.silu(self.block2(x, z, last=last)), last=last)


class KeepingVAE(nn.Module):
    """Decodes 2, 1, 1, ... latents at a time."""

    def __init__(self, channels=8):
        super().__init__()
        self.decoder = KeepingDecoder(channels)

    def decode(self, z):
        chunks = [z[:, :, :2], *z[:, :, 2:].split(1, dim=2)] if z.shape[2] > 2 else [z]
        done = [self.decoder(chunk, last=i + 1 == len(chunks)) for i, chunk in enumerate(chunks)]
        return torch.cat(done, 2)


class PaddingConv(nn.Module):
    """Repeats what is at the border of all axes."""

    def __init__(self, inputs, outputs, kernel=3, stride=1):
        super().__init__()
        self.around = (*(kernel // 2,) * 4, kernel - 1, 0)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride)

    def forward(self, x):
        return self.conv(F.pad(x, self.around, mode="replicate"))


class PaddingBlock(nn.Module):
    """A residual block."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inputs), PaddingConv(inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs), PaddingConv(outputs, outputs)
        self.act, self.short = nn.SiLU(inplace=True), PaddingConv(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv1(self.act(self.norm1(x)))
        return self.short(x) + self.conv2(self.act(self.norm2(y)))


class PaddingVAE(nn.Module):
    """In the manner of HunyuanVideo: a clip in one piece, attention behind a mask."""

    def __init__(self, channels=8):
        super().__init__()
        self.encoder = nn.Module()
        self.decoder = PaddingDecoder(channels)

    def decode(self, z):
        return self.decoder(z)


class PaddingDecoder(nn.Module):
    """Doubles pixels and frames, the first one aside."""

    def __init__(self, channels):
        super().__init__()
        self.begin, self.block1 = PaddingConv(4, 2 * channels), PaddingBlock(2 * channels, channels)
        self.norm = nn.GroupNorm(4, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.up, self.block2 = PaddingConv(channels, channels), PaddingBlock(channels, channels)
        self.end = PaddingConv(channels, 3)

    def forward(self, z):
        x = self.attend(self.block1(self.begin(z)))
        first, rest = x.split((1, x.shape[2] - 1), dim=2)
        first = F.interpolate(first.squeeze(2), scale_factor=(2, 2), mode="nearest").unsqueeze(2)
        if rest.shape[2]:
            rest = F.interpolate(rest, scale_factor=(2, 2, 2), mode="nearest")
            first = torch.cat((first, rest), dim=2)
        return self.end(self.block2(self.up(first)))

    def attend(self, x):
        batch, channels, frames, height, width = x.shape
        count = frames * height * width
        mask = torch.full((count, count), float("-inf"), dtype=x.dtype, device=x.device)
        for i in range(frames):
            mask[i * height * width : (i + 1) * height * width, : (i + 1) * height * width] = 0
        y = self.norm(x).flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(*self.qkv(y).chunk(3, dim=-1), attn_mask=mask)
        return x + self.out(y).transpose(1, 2).reshape(x.shape)


class BothSidesConv(nn.Module):
    """Repeats the first frame, or the first and the last one."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 3, padding=(0, 1, 1), padding_mode="reflect")

    def forward(self, x, causal=True):
        front = x[:, :, :1].repeat((1, 1, 2 if causal else 1, 1, 1))
        back = [] if causal else [x[:, :, -1:].repeat((1, 1, 1, 1, 1))]
        return self.conv(torch.concatenate((front, x, *back), dim=2))


class PixelNorm(nn.Module):
    """Without weights."""

    def __init__(self, eps=1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, x):
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.eps)


class ShufflingVAE(nn.Module):
    """In the manner of LTX: a time step, noise, pixels out of channels."""

    def __init__(self, channels=8, causal=False):
        super().__init__()
        self.decoder = ShufflingDecoder(channels, causal)

    def decode(self, z):
        return self.decoder(
            z, target_shape=(1, 3, 9, 32, 32), step=torch.full((z.shape[0],), 0.05, dtype=z.dtype)
        )


class ShufflingDecoder(nn.Module):
    """Noise and a time step beside the latents."""

    def __init__(self, channels, causal):
        super().__init__()
        self.causal, self.norm, self.act = causal, PixelNorm(), nn.SiLU()
        self.begin, self.conv1 = BothSidesConv(4, channels), BothSidesConv(channels, channels)
        self.conv2, self.up = BothSidesConv(channels, channels), BothSidesConv(channels, 8 * channels)
        self.end = BothSidesConv(channels, 12)
        self.table = nn.Parameter(torch.randn(2, channels))
        self.noise = nn.Parameter(torch.randn(channels, 1, 1))
        self.embed = nn.Linear(1, 2 * channels)

    def forward(self, z, target_shape, step=None):
        assert target_shape is not None
        x = self.begin(z, causal=self.causal)
        shift, scale = (self.table[None] + self.embed(step[:, None]).view(z.shape[0], 2, -1)).unbind(1)
        y = self.norm(x) * (1 + scale[..., None, None, None]) + shift[..., None, None, None]
        y = self.conv1(self.act(y), causal=self.causal)
        noise = torch.randn(y.shape[-2:], dtype=y.dtype, device=y.device)[None]
        y = y + (noise * self.noise)[None, :, None]
        y = x + self.conv2(self.act(self.norm(y)), causal=self.causal)
        y = self.up(y, causal=self.causal)
        batch, channels, frames, height, width = y.shape
        y = y.view(batch, channels // 8, 2, 2, 2, frames, height, width).permute(0, 1, 5, 2, 6, 3, 7, 4)
        y = y.reshape(batch, channels // 8, 2 * frames, 2 * height, 2 * width)[:, :, 1:]
        y = self.end(self.act(self.norm(y)), causal=self.causal)
        batch, _, frames, height, width = y.shape
        y = y.view(batch, 3, 2, 2, frames, height, width).permute(0, 1, 4, 5, 3, 6, 2)
        return y.reshape(batch, 3, frames, 2 * height, 2 * width)


VAES = {
    "caches in a list": ListVAE,
    "caches that are returned": lambda: ListVAE(gives_all=True),
    "caches on modules": KeepingVAE,
    "padding of all axes": PaddingVAE,
    "frames on both sides": ShufflingVAE,
    "noise, causal": lambda: ShufflingVAE(causal=True),
}
