"""PyTorch as the reference: the whole model, or one block at a time."""
