"""Train a tiny denoiser on the latents of a data set, for a minute at most.

    causalvae-kernels encode CLIPS --weights FOLDER --output latents --frames 17 --size 176x144
    python examples/train_latents.py latents --seconds 60

What it shows is how latents come to a model, not a good model: batches of one shape, a fresh sample of each
posterior in every epoch, and the loss of flow matching, E |v(x_t, t) - (noise - x)|² with
x_t = (1 - t) x + t noise.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from causalvae_kernels.data import LatentDataset, ShapeBatches


class Denoiser(nn.Module):
    """Three convolutions over space and time; the time of the noise is one more channel."""

    def __init__(self, channels: int, width: int = 48) -> None:
        """Make the layers."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(channels + 1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv3d(width, channels, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the velocity at noisy latents (B, C, T, H, W) and times (B,)."""
        time_channel = t.view(-1, 1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layers(torch.cat([x, time_channel], dim=1))


def train(
    folder: str,
    seconds: float,
    batch_size: int = 4,
    workers: int = 0,
    seed: int = 0,
    steps: int | None = None,
) -> list[float]:
    """Train on a folder of latents until the time or the steps are over; return the loss of each step."""
    torch.manual_seed(seed)
    dataset = LatentDataset(folder, dtype=torch.float32, generator=torch.Generator().manual_seed(seed))
    batches = ShapeBatches(dataset, batch_size, seed=seed)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers)
    scale = torch.stack([item["latents"].std() for item in dataset]).mean()
    model = Denoiser(dataset.shapes[0][0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses: list[float] = []
    end, epoch = time.monotonic() + seconds, 0
    while True:
        batches.set_epoch(epoch)
        for batch in loader:
            if time.monotonic() > end or len(losses) == steps:
                return losses
            x = batch["latents"] / scale
            noise, t = torch.randn_like(x), torch.rand(len(x))
            share = t.view(-1, 1, 1, 1, 1)
            velocity = model((1 - share) * x + share * noise, t)
            loss = (velocity - (noise - x)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        epoch += 1


def main() -> None:
    """Train, and print the loss of the first and the last steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="what `causalvae-kernels encode` wrote")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    losses = train(options.folder, options.seconds, options.batch_size, options.workers)
    count = max(len(losses) // 10, 1)
    first, last = (sum(part) / count for part in (losses[:count], losses[-count:]))
    print(f"{len(losses)} steps; loss of the first tenth {first:.3f}, of the last tenth {last:.3f}")


if __name__ == "__main__":
    main()
