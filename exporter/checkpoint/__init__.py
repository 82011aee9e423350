"""Checkpoints: where they are found, what their tensors are called, how they are read."""

from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
