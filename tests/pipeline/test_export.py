"""Whole exports against PyTorch: every FFN kind tied and untied, padding, bucket edges, long caches, tokens, disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import t5edge
from support.bundles import Workshop, demo_workshop
from support.tiny_models import tiny_models
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.family.variants import DEMO_FOLDER
from t5edge.exporter.reference.whole import build_torch_model

TINY_MODELS = {tiny.name: tiny for tiny in tiny_models()}
CHECKED = ("t5-tiny", "v1.1-tiny", "ul2-tiny")
PER_LAYER_BIAS = "umt5-tiny"
SOURCE_LENGTHS = (1, 7, 8, 15, 16, 127, 128, 129)
STEPS = 141


def torch_logits(checkpoint: Checkpoint, ids: np.ndarray, mask: np.ndarray, targets: np.ndarray) -> np.ndarray:
    model = build_torch_model(checkpoint, torch.float32)
    with torch.inference_mode():
        arrays = (torch.from_numpy(array) for array in (ids, mask, targets))
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        return model(**dict(zip(names, arrays, strict=True))).logits.numpy()


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(ours.astype(np.float64) - reference) / np.linalg.norm(reference))


def padded_batch(vocab_size: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three rows: whole, half, and one token long."""
    ids = np.random.default_rng(seed).integers(3, vocab_size, (3, length))
    mask = np.ones_like(ids)
    for row, kept in ((1, max(1, length // 2)), (2, 1)):
        mask[row, kept:], ids[row, kept:] = 0, 0
    return ids, mask


@pytest.fixture(
    scope="module",
    params=[("t5-demo", None), *((name, tied) for name in CHECKED for tied in (True, False)), (PER_LAYER_BIAS, False)],
)
def exported(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Checkpoint, Path]:
    name, tied = request.param
    folder = tmp_path_factory.mktemp(f"{name}-{tied}")
    if name == "t5-demo":
        workshop = demo_workshop(folder)
    else:
        config = {**TINY_MODELS[name].config, "tie_word_embeddings": tied, "scale_decoder_outputs": tied}
        (folder / "config.json").write_text(json.dumps(config))
        checkpoint = open_checkpoint(str(folder), random_weights=1)
        assert checkpoint.architecture.tied is tied
        workshop = Workshop(folder / "bundles", checkpoint)
    bundle = workshop.bundle("fp32", "concat")
    return workshop.checkpoint, bundle


def test_fp32_logits_at_the_bucket_edges_in_a_padded_batch(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    model = t5edge.load(folder)
    targets = np.random.default_rng(0).integers(3, model.vocab_size, (3, 3))
    for length in SOURCE_LENGTHS:
        ids, mask = padded_batch(model.vocab_size, length, seed=length)
        reference = torch_logits(checkpoint, ids, mask, targets)
        assert relative_error(model.logits(ids, mask, targets), reference) <= 1e-5, length


def test_fp32_logits_of_every_cached_step_past_0_to_140(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    model = t5edge.load(folder)
    ids, mask = padded_batch(model.vocab_size, 40, seed=7)
    targets = np.random.default_rng(1).integers(3, model.vocab_size, (3, STEPS))
    reference = torch_logits(checkpoint, ids, mask, targets)
    cached = model.logits(ids, mask, targets)
    worst = max(relative_error(cached[:, step], reference[:, step]) for step in range(STEPS))
    assert worst <= 1e-5
    assert relative_error(model.logits_uncached(ids, mask, targets), reference) <= 1e-5


def test_the_checked_models_have_every_ffn() -> None:
    assert {TINY_MODELS[name].config["feed_forward_proj"] for name in CHECKED} == {"relu", "gated-gelu", "gated-silu"}


def test_weights_are_stored_once(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    distinct = 4 * checkpoint.architecture.parameters
    assert 0.95 * distinct <= (folder / "weights.safetensors").stat().st_size <= 1.05 * distinct + 64_000


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    lines = (DEMO_FOLDER / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 200
    return [json.loads(line)["source"] for line in lines]


@pytest.mark.parametrize("num_beams", [1, 4])
def test_tokens_equal_transformers_on_200_held_out_prompts(demo: Workshop, prompts: list[str], num_beams: int) -> None:
    model = t5edge.load(demo.bundle("fp32", "concat"))
    reference = build_torch_model(demo.checkpoint, torch.float32)
    for start in range(0, len(prompts), 50):
        ids, mask = model.tokenizer.encode(prompts[start : start + 50])
        ours = model.generate(ids, mask, max_new_tokens=64, num_beams=num_beams)
        theirs = reference.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=64,
            num_beams=num_beams,
            do_sample=False,
        )
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_unknown_keywords_and_targets_are_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(t5edge.UserError, match="unexpected keyword"):
        t5edge.export("t5-demo", "fp32", colour="red")
    with pytest.raises(t5edge.UserError, match="target 'abacus' is unknown"):
        t5edge.load(tmp_path, target="abacus")


def test_inputs_of_the_wrong_shape_are_the_users_error(demo: Workshop) -> None:
    model = t5edge.load(demo.bundle("fp32", "concat"))
    ids = np.array([[5, 6, 1]])
    with pytest.raises(t5edge.UserError, match=r"attention_mask has shape \[1, 2\]"):
        model.generate(ids, np.ones((1, 2), np.int64))
    with pytest.raises(t5edge.UserError, match="the vocabulary has 187 ids"):
        model.generate(np.array([[5, 500, 1]]))
    with pytest.raises(t5edge.UserError, match="decoder_input_ids has 2 rows"):
        model.logits(ids, None, np.zeros((2, 1), np.int64))
    with pytest.raises(t5edge.UserError, match="takes a list of texts"):
        model.generate_text("spell 7")
