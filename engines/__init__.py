"""TensorRT engines, built ahead of time or on the device: build, prove, diagnose."""
