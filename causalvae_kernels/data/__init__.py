"""Data sets of clips: checking them, encoding them to latents once, and training on these."""

from .dataset import LatentDataset, ShapeBatches

__all__ = ["LatentDataset", "ShapeBatches"]
