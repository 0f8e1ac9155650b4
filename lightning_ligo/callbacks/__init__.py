"""Callbacks of the Lightning Trainer."""

from lightning_ligo.callbacks.growth import GrowthCallback

__all__ = ["GrowthCallback"]
