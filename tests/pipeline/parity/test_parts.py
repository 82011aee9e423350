from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from support.exports import GATED, Exports
from t5edge.parity.parts import InParts
from t5edge.runtime.model import BundleModel, load

ROWS = 5


class Strict:
    """ONNX Runtime that refuses more than two rows, as an engine built for two does."""

    def __init__(self, folder: Path) -> None:
        self._model = load(folder).step_model
        self.reordered = 0

    def encode(self, ids: np.ndarray, mask: np.ndarray, copies: int = 1) -> object:
        assert len(ids) * copies <= 2
        return self._model.encode(ids, mask, copies)

    def step(self, state: object, tokens: np.ndarray) -> np.ndarray:
        assert tokens.flags.c_contiguous
        return self._model.step(state, tokens)

    def best(self, state: object, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = self.step(state, tokens)[:, -1]
        return logits.argmax(-1), logits.max(-1)

    def reorder(self, state: object, rows: np.ndarray) -> None:
        self.reordered += 1
        assert set(rows.tolist()) <= {0, 1}
        self._model.reorder(state, rows)

    def hidden_and_cross(self, ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        assert len(ids) <= 2
        return self._model.hidden_and_cross(ids, mask)


@pytest.fixture(scope="module")
def whole(exports: Exports) -> BundleModel:
    return load(exports.bundle(GATED))


@pytest.fixture
def parted(whole: BundleModel) -> BundleModel:
    return BundleModel(whole.folder, whole.manifest, InParts(Strict(whole.folder), 2))


@pytest.fixture(scope="module")
def prompts(whole: BundleModel) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(3, whole.vocab_size, (ROWS, 9))
    mask = (np.arange(9) < np.array([[9], [2], [7], [1], [5]])).astype(np.int64)
    return ids, mask


def test_every_output_is_that_of_the_whole_batch(
    whole: BundleModel, parted: BundleModel, prompts: tuple[np.ndarray, np.ndarray]
) -> None:
    targets = np.random.default_rng(1).integers(3, whole.vocab_size, (ROWS, 6))
    expected, found = (model.step_model.hidden_and_cross(*prompts) for model in (whole, parted))
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5)
    np.testing.assert_allclose(parted.logits(*prompts, targets), whole.logits(*prompts, targets), atol=1e-5)
    np.testing.assert_allclose(
        parted.logits_uncached(*prompts, targets), whole.logits_uncached(*prompts, targets), atol=1e-5
    )


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_is_that_of_the_whole_batch(
    whole: BundleModel, parted: BundleModel, prompts: tuple[np.ndarray, np.ndarray], num_beams: int
) -> None:
    expected, found = (model.generate(*prompts, max_new_tokens=12, num_beams=num_beams) for model in (whole, parted))
    np.testing.assert_array_equal(found, expected)
    assert (parted.step_model._model.reordered > 0) == (num_beams > 1)
