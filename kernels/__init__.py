"""Fused operators: one folder each, with the contract (shapes, dtypes, numpy reference) and the fusion."""
