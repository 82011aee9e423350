"""Unit tests run where torch and transformers are not installed, and finish in milliseconds."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of torch or transformers fails, as on a device."""
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
