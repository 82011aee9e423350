"""Backends that run engines of TensorRT and TensorRT-RTX."""
