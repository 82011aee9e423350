"""Bundles in optimum's layout: the demo, tiny_models, quantized weights; written by the stages of the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from support.bundles import Workshop
from support.optimum_layout import write_layout


@pytest.fixture(scope="session")
def optimum_demo(demo: Workshop) -> Callable[[str], Path]:
    """t5-demo in a precision, made on first use. Tests that change it copy it."""
    made: dict[str, Path] = {}

    def bundle(name: str) -> Path:
        if name not in made:
            made[name] = write_layout(demo, name, demo.folder / f"{name}-optimum")
        return made[name]

    return bundle
