"""One traced model for every test that needs bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.exporter.targets.bundles import Workshop


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """t5-demo's bundles in any precision; its blocks are traced on first use."""
    from tests.exporter.targets.bundles import demo_workshop

    return demo_workshop(tmp_path_factory.mktemp("demo"))
