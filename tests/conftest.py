"""What every test shares: one thread per process (two cores, two workers), and one traced model."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.bundles import Workshop


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """t5-demo's bundles in any precision; its blocks are traced on first use."""
    from support.bundles import demo_workshop

    return demo_workshop(tmp_path_factory.mktemp("demo"))
