"""The tiny models keep what makes the family odd, and cover all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from support.tiny_models import TinyModel, find_tiny_model, group_by_structure, save_tiny_model, structure, tiny_models
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.family.variants import DEMO_NAME, variants


def test_tiny_models_have_every_structure_of_the_table() -> None:
    published = [row for row in variants() if row.name != DEMO_NAME]
    groups = group_by_structure(published)
    assert set(groups) == {structure(tiny.architecture) for tiny in tiny_models()}
    assert len(groups) == 8
    assert sum(len(rows) for rows in groups.values()) == len(published)


@pytest.mark.parametrize("tiny", tiny_models(), ids=lambda tiny: tiny.name)
def test_no_tiny_model_is_square(tiny: TinyModel) -> None:
    facts = tiny.architecture
    assert facts.inner_dim != facts.d_model
    assert facts.d_kv != facts.d_model / facts.num_heads
    assert facts.encoder_layers != facts.decoder_layers
    assert facts.vocab_size & (facts.vocab_size - 1) != 0
    assert facts.parameters < 2_500_000


def test_ratios_of_the_family_survive() -> None:
    facts = {tiny.name: tiny.architecture for tiny in tiny_models()}
    assert facts["t5-11b-tiny"].inner_dim == 16 * facts["t5-11b-tiny"].d_model
    assert facts["efficient-kv16-tiny"].inner_dim < facts["efficient-kv16-tiny"].d_model
    assert facts["mt5-tiny"].inner_dim < facts["mt5-tiny"].d_model
    assert facts["byt5-tiny"].encoder_layers == 3 * facts["byt5-tiny"].decoder_layers
    assert facts["byt5-tiny"].vocab_size == 384
    assert {shape.d_kv for shape in facts.values()} == {16, 32, 64, 128, 256}
    assert any(shape.encoder_layers < shape.decoder_layers for shape in facts.values())


def test_layouts_differ_where_the_libraries_do(tmp_path: Path) -> None:
    new = save_tiny_model(find_tiny_model("v1.1-tiny"), tmp_path / "5", 0)
    old = save_tiny_model(find_tiny_model("v1.1-tiny"), tmp_path / "4", 0, "transformers4", bin=True)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (new, old)]
    assert [config["tie_word_embeddings"] for config in configs] == [True, False]
    assert [config.get("scale_decoder_outputs") for config in configs] == [False, None]
    names = set(torch.load(old / "pytorch_model.bin", weights_only=True))
    assert "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight" in names
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} <= names


def test_old_umt5_lacks_its_model_type(tmp_path: Path) -> None:
    save_tiny_model(find_tiny_model("umt5-tiny"), tmp_path, 0, "transformers4")
    assert "model_type" not in json.loads((tmp_path / "config.json").read_text())


def test_sharded_files_are_named_as_the_hub_names_them(tmp_path: Path) -> None:
    save_tiny_model(find_tiny_model("byt5-tiny"), tmp_path, 0, sharded=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]


def test_same_seed_same_weights(tmp_path: Path) -> None:
    tiny = find_tiny_model("ul2-tiny")
    first, again, other = (
        open_checkpoint(str(save_tiny_model(tiny, tmp_path / str(number), seed))).read("lm_head.weight")
        for number, seed in enumerate((4, 4, 5))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
