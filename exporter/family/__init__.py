"""The T5 family: published variants and their configurations."""
