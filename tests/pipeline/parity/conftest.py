"""Bundles of two tiny models that between them have every kind of block, traced once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from support.exports import Exports


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Twins are too small for threads to help; waiting for each other, they hinder on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("tiny_models"))
