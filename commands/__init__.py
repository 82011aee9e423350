"""The commands: each takes its options, does its work through the public API, and returns a ``Result``."""
