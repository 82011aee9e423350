"""Opening checkpoints: every layout, the demo, random weights, and what is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.tiny_models import TinyModel, find_tiny_model, save_tiny_model, tiny_models
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.family.variants import DEMO_FOLDER, find_variant

LAYOUTS = ("transformers5", "transformers4")
TIED, UNTIED = find_tiny_model("t5-tiny"), find_tiny_model("v1.1-tiny")


def rewrite(folder: Path, drop: tuple[str, ...] = (), **changes: torch.Tensor) -> None:
    """Replace tensors of ``folder``; names in ``changes`` have ``__`` for a dot."""
    state = load_file(folder / "model.safetensors")
    state = {name: tensor for name, tensor in state.items() if name not in drop}
    state |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file(state, folder / "model.safetensors")


def set_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(variant: str, **options: Any) -> str:
    """The one line with which ``variant`` is refused."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(variant, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("tiny", tiny_models(), ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_models_facts(tmp_path: Path, tiny: TinyModel, layout: Any) -> None:
    checkpoint = open_checkpoint(str(save_tiny_model(tiny, tmp_path, 1, layout)))
    assert checkpoint.architecture == tiny.architecture
    assert checkpoint.names() == list(tiny.architecture.tensor_shapes())
    assert {name: checkpoint.shape(name) for name in checkpoint.names()} == tiny.architecture.tensor_shapes()
    assert checkpoint.differences == []


@pytest.mark.parametrize("tiny", [TIED, UNTIED], ids=lambda tiny: tiny.name)
def test_forms_and_layouts_hold_the_random_weights(tmp_path: Path, tiny: TinyModel) -> None:
    drawn = Checkpoint("drawn", tiny.config, open_random(tiny))
    for number, (layout, sharded, pickled) in enumerate(itertools.product(LAYOUTS, (False, True), (False, True))):
        folder = save_tiny_model(tiny, tmp_path / str(number), 1, layout, sharded=sharded, bin=pickled)  # type: ignore[arg-type]
        checkpoint = open_checkpoint(str(folder))
        assert all(torch.equal(checkpoint.read(name), drawn.read(name)) for name in drawn.names())


def open_random(tiny: TinyModel) -> Any:
    from t5edge.exporter.checkpoint.random_weights import RandomStore

    return RandomStore(tiny.architecture, 1)


def test_demo() -> None:
    checkpoint = open_checkpoint("t5-demo")
    assert (checkpoint.source, checkpoint.folder) == ("t5-demo", DEMO_FOLDER)
    assert checkpoint.architecture == find_variant("t5-demo").architecture
    assert checkpoint.dtype("shared.weight") == "float16"
    assert checkpoint.read("shared.weight").dtype == torch.float16
    assert checkpoint.tokenizer_file() == DEMO_FOLDER / "tokenizer.json"
    assert checkpoint.generation_config["max_new_tokens"] > 0
    assert not checkpoint.random


def test_random_weights_of_a_row() -> None:
    checkpoint = open_checkpoint("byt5-small", random_weights=3)
    assert checkpoint.source == "google/byt5-small"
    assert checkpoint.architecture == find_variant("byt5-small").architecture
    assert checkpoint.random
    assert (checkpoint.folder, checkpoint.revision, checkpoint.tokenizer_file()) == (None, None, None)
    assert checkpoint.generation_config == {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    again, other = (
        open_checkpoint("byt5-small", random_weights=3),
        open_checkpoint("byt5-small", random_weights=4),
    )
    assert again.content_key() == checkpoint.content_key() != other.content_key()


@pytest.mark.parametrize("name", ["t5-11b", "ul2", "mt5-xxl", "umt5-xxl", "t5-efficient-xxl-nl4"])
def test_random_weights_of_the_largest_cost_nothing_until_read(name: str) -> None:
    checkpoint = open_checkpoint(name, random_weights=0)
    norm = "decoder.block.1.layer.2.layer_norm.weight"
    assert checkpoint.read(norm).shape == (checkpoint.architecture.d_model,)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mt5-tiny", "umt5-tiny"])
def test_random_weights_of_a_folder_take_its_structure(tmp_path: Path, name: str, layout: Any) -> None:
    tiny = find_tiny_model(name)
    folder = save_tiny_model(tiny, tmp_path, 1, layout)
    checkpoint = open_checkpoint(str(folder), random_weights=2)
    assert checkpoint.architecture == tiny.architecture
    assert not torch.equal(checkpoint.read("shared.weight"), open_checkpoint(str(folder)).read("shared.weight"))


def test_random_weights_of_a_folder_that_holds_a_config_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNTIED.config))
    assert open_checkpoint(str(tmp_path), random_weights=0).architecture == UNTIED.architecture


def test_folder_without_weights_does_not_hide_the_row_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t5-demo", "byt5-small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        assert open_checkpoint(name, random_weights=0).architecture == find_variant(name).architecture
    assert open_checkpoint("t5-demo").folder == DEMO_FOLDER


@pytest.mark.parametrize("kept", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_embedding_under_another_name(tmp_path: Path, kept: str) -> None:
    folder = save_tiny_model(TIED, tmp_path, 1)
    table = load_file(folder / "model.safetensors")["shared.weight"].clone()
    rewrite(folder, drop=("shared.weight",), **{kept.replace(".", "__"): table})
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.architecture == TIED.architecture
    assert torch.equal(checkpoint.read("shared.weight"), table)


def test_head_equal_to_the_embedding_is_tied_but_unscaled(tmp_path: Path) -> None:
    folder = save_tiny_model(UNTIED, tmp_path, 1, "transformers4")
    rewrite(folder, lm_head__weight=load_file(folder / "model.safetensors")["shared.weight"].clone())
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.architecture == replace(UNTIED.architecture, tied=True)
    assert "lm_head.weight" not in checkpoint.names()


def test_content_key_follows_config_and_weights(tmp_path: Path) -> None:
    folder = save_tiny_model(TIED, tmp_path, 1)
    keys = [open_checkpoint(str(folder)).content_key() for _ in range(2)]
    set_config(folder, pad_token_id=0, n_positions=512)
    keys.append(open_checkpoint(str(folder)).content_key())
    rewrite(folder, shared__weight=torch.zeros(131, 72))
    keys.append(open_checkpoint(str(folder)).content_key())
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_generation_config_of_the_folder_wins(tmp_path: Path) -> None:
    folder = save_tiny_model(TIED, tmp_path, 1)
    set_config(folder, eos_token_id=[1, 5], decoder_start_token_id=2)
    assert open_checkpoint(str(folder)).generation_config == {
        "decoder_start_token_id": 2,
        "eos_token_id": [1, 5],
        "pad_token_id": 0,
    }
    (folder / "generation_config.json").write_text('{"decoder_start_token_id": 7, "num_beams": 4}')
    settings = open_checkpoint(str(folder)).generation_config
    assert (settings["decoder_start_token_id"], settings["num_beams"], settings["pad_token_id"]) == (7, 4, 0)


def test_folder_named_as_a_row_wins_and_its_differences_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(TIED, tmp_path / "google" / "t5-efficient-tiny", 1)
    checkpoint = open_checkpoint("google/t5-efficient-tiny")
    assert checkpoint.architecture == TIED.architecture
    assert checkpoint.differences[:3] == [
        "vocab_size: table 32128, checkpoint 131",
        "d_model: table 256, checkpoint 72",
        "d_ff: table 1024, checkpoint 104",
    ]


def test_tensors_of_other_tasks_are_ignored_and_told(tmp_path: Path) -> None:
    folder = save_tiny_model(TIED, tmp_path, 1)
    rewrite(folder, qa_outputs__weight=torch.zeros(2, 72), classifier__bias=torch.zeros(2))
    assert open_checkpoint(str(folder)).differences == ["ignored tensors: classifier.bias, qa_outputs.weight"]


def test_all_problems_in_one_line(tmp_path: Path) -> None:
    folder = save_tiny_model(UNTIED, tmp_path, 1)
    rewrite(
        folder,
        drop=tuple(f"encoder.block.{layer}.layer.0.SelfAttention.{part}.weight" for layer in (0, 1) for part in "qkv"),
        encoder__final_layer_norm__weight=torch.ones(7),
        decoder__block__9__layer__0__layer_norm__weight=torch.ones(104),
        encoder__embed_tokens__weight=torch.zeros(149, 104),
        decoder__final_layer_norm__weight=torch.ones(104, dtype=torch.int8),
    )
    assert refusal(str(folder)) == (
        f"{folder} does not fit its config.json: "
        "6 missing: encoder.block.0.layer.0.SelfAttention.q.weight, "
        "encoder.block.0.layer.0.SelfAttention.k.weight, encoder.block.0.layer.0.SelfAttention.v.weight, "
        "encoder.block.1.layer.0.SelfAttention.q.weight, and 2 more; "
        "1 of another shape: encoder.final_layer_norm.weight is [7] instead of [104]; "
        "encoder.embed_tokens.weight differs from shared.weight, but T5 has one table; "
        "1 that config.json has no place for: decoder.block.9.layer.0.layer_norm.weight; "
        "1 not of a float type (quantized already?): decoder.final_layer_norm.weight is I8. "
        "Check that both are of one model."
    )


def test_untied_checkpoint_without_head(tmp_path: Path) -> None:
    folder = save_tiny_model(UNTIED, tmp_path, 1, "transformers4")
    rewrite(folder, drop=("lm_head.weight",))
    assert "lm_head.weight is missing while config.json says tie_word_embeddings: false" in refusal(str(folder))


def test_checkpoint_without_any_embedding(tmp_path: Path) -> None:
    folder = save_tiny_model(TIED, tmp_path, 1)
    rewrite(folder, drop=("shared.weight",))
    assert "1 missing: shared.weight" in refusal(str(folder))


def test_config_problems(tmp_path: Path) -> None:
    folder = save_tiny_model(TIED, tmp_path, 1)
    set_config(folder, model_type="bart")
    assert "model_type 'bart' is not of the T5 family" in refusal(str(folder))
    (folder / "config.json").write_text('{"d_model": 5')
    assert "config.json is not valid JSON (Expecting" in refusal(str(folder))
    (folder / "config.json").write_text("[1]")
    assert "config.json holds a JSON list; expected an object" in refusal(str(folder))
    (folder / "config.json").unlink()
    assert "config.json is missing; a checkpoint folder holds config.json and the weights" in refusal(str(folder))


def test_foreign_model_is_refused_before_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 9}')
    assert "'bert' is not of the T5 family" in refusal(str(tmp_path))


@pytest.mark.parametrize("options", [{}, {"random_weights": 0}])
def test_paths_are_never_looked_up_on_the_hub(tmp_path: Path, options: dict[str, int]) -> None:
    message = refusal(str(tmp_path / "nowhere"), **options)
    assert "is not a folder" in message or "config.json is missing" in message


@pytest.mark.parametrize("options", [{}, {"random_weights": 0}])
def test_names_that_only_look_like_rows(options: dict[str, int]) -> None:
    assert refusal("t5-smal", **options) == (
        "'t5-smal' is not in the table of variants. Did you mean 'google-t5/t5-small'?"
    )
    assert "never published for transformers" in refusal("google/t5-efficient-base-skv", **options)
