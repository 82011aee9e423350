"""Versions of the tools a bundle was made with, without importing them."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = (
    "t5edge",
    "torch",
    "transformers",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13",
    "tokenizers",
)


def tool_versions() -> dict[str, str]:
    """Installed version of each package that matters, and of Python."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
