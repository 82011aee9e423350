"""Backends on ONNX Runtime: CPU, CUDA, and the TensorRT-RTX execution provider."""
