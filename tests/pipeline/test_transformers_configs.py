"""Models configured as transformers' own test suites configure theirs: logits of every graph against transformers.

``tests/models/{t5,mt5,umt5}/test_modeling_*.py`` (the sizes of their ModelTester) and ``byt5`` (untied, a short
decoder), and what none of these has: one head, odd sizes, many and few buckets, exact GELU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.exports import Exports
from support.shared import once
from support.tiny_models import TinyModel, save_tiny_model
from support.transformers_models import transformers_model
from t5edge.parity.limits import FLOAT32_ERROR
from t5edge.parity.measures import relative_error
from t5edge.runtime.model import BundleModel, load

TESTER: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 37,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
}
UNTIED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "scale_decoder_outputs": False}
ONE_HEAD = {"d_model": 33, "num_heads": 1, "d_kv": 7, "d_ff": 37, "num_layers": 1, "num_decoder_layers": 3}
CONFIGS = {
    "t5": {**TESTER, "model_type": "t5"},
    "t5-erf-gate": {
        **TESTER,
        **UNTIED,
        **ONE_HEAD,
        "model_type": "t5",
        "dense_act_fn": "gelu",
        "is_gated_act": True,
        "relative_attention_num_buckets": 64,
    },
    "t5-erf": {
        **TESTER,
        "model_type": "t5",
        "feed_forward_proj": "gelu",
        "num_decoder_layers": 1,
        "relative_attention_max_distance": 20,
    },
    "mt5": {**TESTER, **UNTIED, "model_type": "mt5"},
    "umt5": {**TESTER, **UNTIED, "model_type": "umt5", "num_decoder_layers": 1},
    "byt5": {**TESTER, **UNTIED, "model_type": "t5", "vocab_size": 384, "num_layers": 3, "num_decoder_layers": 1},
}
QUICK = ("t5-erf-gate",)
SOURCES = (1, 2, 511, 600, 1025)
STEPS = 70
"""Target tokens fed one by one: beyond the first buffers and beyond a distance of 20."""
PIECES = (1, 2, 508, 89, 425)
"""A target of 1,025 tokens in pieces that end at 1, 3, 511, 600 and 1,025."""
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]

Logits = np.ndarray
Feed = Callable[[BundleModel, np.ndarray, np.ndarray, np.ndarray], Logits]


@dataclass(frozen=True)
class Case:
    """A checkpoint as transformers loads it, and the exporter that makes its bundles."""

    exports: Exports
    name: str
    folder: Path

    def bundle(self, precision: str) -> Path:
        def make(out: Path) -> None:
            self.exports.export(str(self.folder), precision, out, no_verify=True)

        return once(self.exports.root / f"transformers-{self.name}-{precision}", make)

    def expected(self, dtype: torch.dtype, ids: np.ndarray, mask: np.ndarray, target: np.ndarray) -> Logits:
        """float32 [batch, target, vocab] of transformers' own model in ``dtype``."""
        config = CONFIGS[self.name]
        model = transformers_model(self.folder, config["model_type"], dtype=dtype)
        if config["model_type"] == "umt5":  # transformers 5 scales its logits whatever the tying, 4.57 and t5x do not
            model.config.tie_word_embeddings = config["tie_word_embeddings"]
        feeds = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}
        with torch.no_grad():
            logits = model(**{name: torch.from_numpy(array) for name, array in feeds.items()}).logits
        return np.asarray(logits.float().numpy())


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, exports: Exports) -> Case:
    config = CONFIGS[request.param]
    tiny = TinyModel(request.param, config["model_type"], config)
    folder = exports.root / f"transformers-{tiny.name}"
    once(folder, lambda path: save_tiny_model(tiny, path, 1, "transformers4"))  # says honestly what is tied
    return Case(exports, tiny.name, folder)


def batch(case: Case, source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids and mask int64 [2, source], the second row padded by a half; target int64 [2, target]."""
    draw = np.random.default_rng(source)
    vocab_size = CONFIGS[case.name]["vocab_size"]
    ids, decoder_ids = (draw.integers(2, vocab_size, (2, length)) for length in (source, target))
    mask = np.ones_like(ids)
    mask[1, (source + 1) // 2 :] = 0
    return ids, mask, decoder_ids


def in_pieces(model: BundleModel, ids: np.ndarray, mask: np.ndarray, target: np.ndarray) -> Logits:
    """The target in ``PIECES``, each behind the cache of those before."""
    state = model.step_model.encode(ids, mask)
    ends = np.cumsum(PIECES)
    pieces = zip([0, *ends[:-1]], ends, strict=True)
    return np.concatenate([model.step_model.step(state, target[:, a:b].copy()).copy() for a, b in pieces], axis=1)


FEEDS: tuple[tuple[int, Feed], ...] = ((9, BundleModel.logits_uncached), (STEPS, BundleModel.logits), (1025, in_pieces))


@pytest.mark.parametrize("buffers", [False, True], ids=["dynamic", "preallocated"])
def test_logits_in_float32(case: Case, buffers: bool) -> None:
    model = load(case.bundle("fp32"), buffers=buffers)
    for source in SOURCES:
        for length, feed in FEEDS:
            given = batch(case, source, length)
            expected = case.expected(torch.float32, *given)
            assert relative_error(feed(model, *given), expected) < FLOAT32_ERROR, (source, length)


@pytest.mark.parametrize("buffers", [False, True], ids=["dynamic", "preallocated"])
def test_logits_in_float16_are_no_worse_than_transformers(case: Case, buffers: bool) -> None:
    model = load(case.bundle("fp16"), buffers=buffers)
    given = batch(case, 600, STEPS)
    exact, theirs = (case.expected(dtype, *given) for dtype in (torch.float32, torch.float16))
    for feed in (BundleModel.logits_uncached, BundleModel.logits):
        assert relative_error(feed(model, *given), exact) < 2 * relative_error(theirs, exact)
