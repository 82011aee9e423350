"""Fixtures of the tests that need a GPU: the same bundles as the others have."""

from support.fixtures import demo, one_thread, traces

__all__ = ["demo", "one_thread", "traces"]
