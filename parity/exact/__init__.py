"""What must be exact in any precision: stored weights, every graph apart from its rounding, products of integers."""
