"""Prompts of PEFT beside a checkpoint: where they are found, what they become, and which are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.encoders import save_encoder
from support.prompts import TASK, prompt_config, save_prompt
from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.bundle.files import sha256_of
from t5edge.bundle.ports import Limits
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.checkpoint.prompts import require_room

RELU = "t5-tiny"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(find_tiny_model(RELU), tmp_path_factory.mktemp("base") / RELU, seed=0)


@pytest.fixture(scope="module")
def prompt(base: Path) -> Path:
    return save_prompt(base, base.parent / "prompt", prompt_config("prompt", base, 5))


@pytest.fixture(scope="module")
def prefix(base: Path) -> Path:
    return save_prompt(base, base.parent / "prefix", prompt_config("prefix", base, 4))


def refusal(base: Path, *prompts: object, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(str(base), prompts=[str(given) for given in prompts], **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(source: Path, folder: Path, **config: Any) -> Path:
    """A copy of an adapter whose config says something else."""
    shutil.copytree(source, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def test_tables_are_what_peft_saved(base: Path, prompt: Path, prefix: Path) -> None:
    """Of two submodules the encoder's embeddings; of prefixes numbers 4 i and 4 i + 1 of two tables in a row."""
    checkpoint = open_checkpoint(str(base), prompts=[str(prompt), f"past={prefix}", f"again={prompt}"])
    a = checkpoint.architecture
    assert (a.virtual_tokens, a.prefix_lengths) == (10, (4,))
    assert [(facts.name, facts.ids[0]) for facts in checkpoint.prompts] == [
        ("prompt", a.vocab_size),
        ("past", -1),
        ("again", a.vocab_size + 5),
    ]
    saved = load_file(prompt / "adapter_model.safetensors")["prompt_embeddings"]
    assert saved.shape == (10, a.d_model)
    assert torch.equal(checkpoint.read("virtual_tokens.weight"), torch.cat([saved[:5], saved[:5]]))
    rows = load_file(prefix / "adapter_model.safetensors")["prompt_embeddings"]
    rows = rows.unflatten(1, (2 * a.decoder_layers, a.num_heads, a.d_kv))
    for layer in range(a.decoder_layers):
        for place, half in enumerate(("key", "value")):
            table = checkpoint.read(f"prefix.{layer}.{half}").unflatten(1, (a.num_heads, 4, a.d_kv))
            assert not table[0].any()
            assert torch.equal(table[1], rows[:, (4 * layer + place) % (2 * a.decoder_layers)].transpose(0, 1))
    assert checkpoint.prompts[0].sha256 == sha256_of(prompt / "adapter_model.safetensors")
    assert checkpoint.content_key() != open_checkpoint(str(base)).content_key()
    assert {**a.tensor_shapes()} == {name: checkpoint.shape(name) for name in checkpoint.names()}


def test_a_prompt_as_variant_finds_its_base_model(base: Path, prompt: Path) -> None:
    found = open_checkpoint(str(prompt))
    assert (found.source, [facts.name for facts in found.prompts]) == (str(base), ["prompt"])
    assert "is a prompt already; name its base model there" in refusal(prompt, prompt)


def test_what_changes_weights_comes_by_another_flag(base: Path, prompt: Path, tmp_path: Path) -> None:
    peft.LoraConfig(target_modules=["q"], task_type=TASK).save_pretrained(tmp_path)
    assert "of type LORA, which --prompt does not take: it is no prompt; --adapter merges" in refusal(base, tmp_path)
    with pytest.raises(
        UserError, match="a learnt prompt, which changes no weights; --prompt NAME=DIR puts it in front"
    ):
        open_checkpoint(str(base), adapters=[str(prompt)])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "forward() and generate() of peft differ on it; save the prompt of"),
        ({"peft_type": "CPT"}, "of type CPT, which --prompt does not take: it is for decoders alone"),
        ({"task_type": "CAUSAL_LM"}, "for the task CAUSAL_LM; prompts of SEQ_2_SEQ_LM, models that generate"),
        ({"num_virtual_tokens": None}, "has num_virtual_tokens = None; save the adapter again"),
        ({"num_virtual_tokens": 11}, "is no finite matrix of 11 virtual tokens"),
    ],
)
def test_other_prompts_are_refused_by_name(
    base: Path, prompt: Path, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    assert said in refusal(base, changed(prompt, tmp_path / "other", **config))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_transformer_submodules": 1}, "peft mixes up both attentions of a decoder there; train it with 2"),
        ({"num_attention_heads": 2}, "does not fit"),
        ({"num_layers": 1}, "2 tables of 768 numbers together, the model 3 heads of 64 in 4"),
    ],
)
def test_prefixes_of_other_forms_are_refused(
    base: Path, prefix: Path, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    assert said in refusal(base, changed(prefix, tmp_path / "other", **config))


def test_prompts_of_other_models_and_names_are_refused(base: Path, prompt: Path, prefix: Path, tmp_path: Path) -> None:
    other = save_tiny_model(find_tiny_model("v1.1-tiny"), tmp_path / "other", seed=0)
    assert "it has virtual tokens of 72 numbers, the model 104" in refusal(other, prompt)
    assert "it has 3 heads in 4 tables of 768 numbers together, the model 2 heads of 64 in 4" in refusal(other, prefix)
    assert "two prompts are called 'a'; name them" in refusal(base, f"a={prompt}", f"a={prefix}")
    assert "'none' is no name for a prompt ('none' means no prompt)" in refusal(base, f"none={prompt}")
    assert "'a b' is no name for a prompt (letters" in refusal(base, f"a b={prompt}")
    assert "is not a folder; --prompt takes a folder with adapter_config.json" in refusal(base, "a=./nothing")
    assert "has no valid adapter_config.json; --prompt takes what" in refusal(base, base)
    encoder = save_encoder(RELU, tmp_path / "encoder")
    assert "is an encoder alone, and prompts are for models that generate" in refusal(encoder, prompt)
    assert "is an encoder alone" in refusal(base, prompt, task="encode")


def test_damaged_files_are_refused(base: Path, prompt: Path, tmp_path: Path) -> None:
    folder = changed(prompt, tmp_path / "more")
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    save_file({**state, "base_model.lm_head.weight": torch.zeros(2)}, path)
    assert "expected 'prompt_embeddings' and nothing else" in refusal(base, folder)
    save_file({"prompt_embeddings": state["prompt_embeddings"] * float("nan")}, path)
    assert "is no finite matrix" in refusal(base, folder)
    path.unlink()
    assert "without its weights; expected adapter_model.safetensors" in refusal(base, folder)


def test_a_text_needs_room_behind_a_prompt(base: Path, prompt: Path, prefix: Path) -> None:
    facts = open_checkpoint(str(base), prompts=[str(prompt), str(prefix)]).prompts
    require_room(facts, Limits(8, 7, 6))
    with pytest.raises(UserError, match="'prompt' has 5 virtual tokens, and --max-source-length 6 leaves no room"):
        require_room(facts, Limits(8, 6, 6))
    with pytest.raises(UserError, match="'prefix' has 4 virtual tokens, and --max-target-length 5 leaves no room"):
        require_room(facts, Limits(8, 7, 5))


def test_ids_follow_a_trimmed_vocabulary(base: Path, prompt: Path) -> None:
    (facts,) = open_checkpoint(str(base), prompts=[str(prompt)]).prompts
    assert facts.moved(-20) == replace(facts, first_id=facts.first_id - 20)
