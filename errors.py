"""The errors a user can cause, and the gates a bundle can fail.

Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping


class UserError(Exception):
    """Bad input or environment: what is wrong, what was expected, what to do. The command line exits with 2."""


class GateError(Exception):
    """A finished bundle failed parity or a quality gate. The command line exits with 1."""


EXPORT = "export,onnxruntime"
EXTRAS: Mapping[str, str] = {
    "torch": EXPORT,
    "transformers": EXPORT,
    "onnx": EXPORT,
    "onnx_ir": EXPORT,
    "onnxscript": EXPORT,
    "ml_dtypes": EXPORT,
    "safetensors": EXPORT,
    "huggingface_hub": EXPORT,
    "langcodes": EXPORT,
    "regex": EXPORT,
    "onnxruntime": "onnxruntime",
    "polygraphy": "rtx",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "matplotlib": "plot",
    "sentencepiece": "sentencepiece",
    "fsspec": EXPORT,
    "ray": "ray",
    "shtab": "completion",
}
"""Which of the package's extras brings an import name; `pyproject.toml` lists them."""


def install(extra: str) -> str:
    """The command that adds an extra."""
    return f'pip install "t5edge[{extra}]"'


def missing_package(name: str) -> UserError:
    """The error for an import name of ``EXTRAS`` that is not installed."""
    return UserError(f"{name} is not installed; {install(EXTRAS[name])}")


def explain_import(error: ModuleNotFoundError) -> UserError | None:
    """What to tell the user about an import that failed; None when no extra brings the module, which is a bug."""
    package = (error.name or "").partition(".")[0]
    return missing_package(package) if package in EXTRAS else None


def require_extra(extra: str) -> None:
    """See that every package of an extra is there, without importing it.

    Raises:
        UserError: one is not installed.
    """
    for name, home in EXTRAS.items():
        if home == extra and importlib.util.find_spec(name) is None:
            raise missing_package(name)


def printable(text: str) -> str:
    """``text`` from outside on one line, with control characters spelled out: a terminal would obey them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
