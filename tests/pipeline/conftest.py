"""Fixtures of the tests that trace and export."""

from support.fixtures import demo, exported, exports, one_thread, optimum_demo, traces

__all__ = ["demo", "exported", "exports", "one_thread", "optimum_demo", "traces"]
