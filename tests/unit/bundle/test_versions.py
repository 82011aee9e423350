from __future__ import annotations

import platform
from importlib import metadata

import pytest

from t5edge.bundle.versions import tool_versions


def test_installed_tools_are_named_with_their_versions() -> None:
    found = tool_versions()
    assert found["python"] == platform.python_version()
    assert found["onnxruntime"] == metadata.version("onnxruntime")


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    assert list(tool_versions()) == ["python"]
