"""Checkpoints: where they are found, what their tensors are called, how they are read."""
