"""A checkpoint becomes graphs and weights."""
