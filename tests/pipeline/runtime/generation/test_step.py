"""The protocol's promises, checked on PyTorch; a backend's own tests can follow the same three."""

from __future__ import annotations

from typing import Any

import numpy as np

TOKENS = np.array([[0, 5, 9, 4], [0, 8, 8, 2], [0, 3, 90, 7], [0, 6, 1, 1]])


def start(tiny: Any, torch_step: Any, copies: int = 1) -> tuple[Any, Any]:
    model = torch_step(tiny)
    return model, model.encode(tiny.input_ids[: 4 // copies], tiny.attention_mask[: 4 // copies], copies)


def steps(model: Any, state: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of ``tokens`` fed one at a time: float32 [rows, target, vocab]."""
    columns = [np.ascontiguousarray(tokens[:, i : i + 1]) for i in range(tokens.shape[1])]
    return np.concatenate([model.step(state, column) for column in columns], axis=1)


def test_tokens_at_once_equal_tokens_one_by_one(tiny: Any, torch_step: Any) -> None:
    together = (lambda pair: pair[0].step(pair[1], TOKENS))(start(tiny, torch_step))
    np.testing.assert_allclose(steps(*start(tiny, torch_step), TOKENS), together, rtol=1e-4, atol=1e-4)


def test_copies_share_a_sentence_and_part_by_their_tokens(tiny: Any, torch_step: Any) -> None:
    logits = steps(*start(tiny, torch_step, copies=2), TOKENS)
    np.testing.assert_allclose(logits[0::2, 0], logits[1::2, 0], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[0::2, 1] - logits[1::2, 1]).max() > 0.1


def test_reorder_continues_the_other_rows_cache(tiny: Any, torch_step: Any) -> None:
    rows = np.array([1, 1, 2, 2])
    model, state = start(tiny, torch_step, copies=2)
    steps(model, state, TOKENS[:, :3])
    model.reorder(state, rows)
    moved = steps(model, state, TOKENS[:, 3:])
    replayed = steps(*start(tiny, torch_step, copies=2), np.hstack((TOKENS[rows, :3], TOKENS[:, 3:])))
    np.testing.assert_allclose(moved[:, 0], replayed[:, 3], rtol=1e-4, atol=1e-4)
