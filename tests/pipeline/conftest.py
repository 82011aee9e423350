"""Fixtures of the tests that trace and export."""

from support.fixtures import (
    brief_judging,
    demo,
    encoders,
    exported,
    exports,
    one_thread,
    optimum_demo,
    sentences,
    shallow,
    shipped_judging,
    traces,
)

__all__ = [
    "brief_judging",
    "demo",
    "encoders",
    "exported",
    "exports",
    "one_thread",
    "optimum_demo",
    "sentences",
    "shallow",
    "shipped_judging",
    "traces",
]
