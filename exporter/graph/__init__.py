"""Graphs: trace, assemble, rescale, write."""
