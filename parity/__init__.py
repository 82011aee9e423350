"""The parity ladder: a bundle against PyTorch, check by check, and the report of it."""
