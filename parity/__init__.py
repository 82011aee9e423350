"""The parity ladder: a bundle against PyTorch, rung by rung, and the report of it."""
