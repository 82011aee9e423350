"""Verification block by block: a model of any size is checked in the memory of one layer."""

from t5edge.parity.blockwise.verify import verify_blockwise

__all__ = ["verify_blockwise"]
