"""Which part of which layer is wrong: a bundle's sublayers against PyTorch's, each on its own, one layer in memory."""

from t5edge.parity.localize.locate import locate

__all__ = ["locate"]
