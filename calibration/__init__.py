"""Quantization decided by measurement: texts, ranges, smoothing, sensitivity, placement."""
