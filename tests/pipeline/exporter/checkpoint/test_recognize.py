"""Folders that are no plain checkpoint: wrappers are taken off, everything else is named for what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
)

from t5edge.errors import UserError
from t5edge.exporter.checkpoint import open_checkpoint

SIZES: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}


def config(**settings: Any) -> T5Config:
    return T5Config(**SIZES, decoder_start_token_id=0, **settings)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    model = T5ForConditionalGeneration(config())
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "base_model.model.", "module._orig_mod."])
def test_a_wrapper_s_prefix_is_taken_off(tmp_path: Path, state: dict[str, torch.Tensor], prefix: str) -> None:
    config().save_pretrained(tmp_path)
    torch.save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    checkpoint = open_checkpoint(str(tmp_path))
    assert all(torch.equal(checkpoint.read(name), state[name]) for name in checkpoint.names())
    assert checkpoint.differences == []


@pytest.mark.parametrize(
    ("kind", "head", "said"),
    [
        (T5ForTokenClassification, "tokens", "is a T5ForTokenClassification: an encoder and "),
        (
            T5ForSequenceClassification,
            "text",
            "is a T5ForSequenceClassification with tensors of its own (classification_",
        ),
        (T5ForQuestionAnswering, "span", "is a T5ForQuestionAnswering with tensors of its own (qa_outputs."),
    ],
)
def test_heads_are_known_by_their_tensors(tmp_path: Path, kind: Any, head: str, said: str) -> None:
    model = kind(config())
    model.save_pretrained(tmp_path)
    found = open_checkpoint(str(tmp_path)).architecture
    assert (found.head, found.encoder_alone, found.head_layers) == (head, True, int(head != "tokens"))
    incomplete = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(".bias")}
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: tensor.clone() for name, tensor in incomplete.items()}, tmp_path / "pytorch_model.bin")
    assert said in refusal(tmp_path)


def test_a_foreign_class_with_tensors_of_its_own_is_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    config(architectures=["ChronosBoltModelForForecasting"]).save_pretrained(tmp_path)
    torch.save({**state, "input_patch_embedding.weight": torch.zeros(2, 2)}, tmp_path / "pytorch_model.bin")
    assert "is a ChronosBoltModelForForecasting with tensors of its own" in refusal(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(str(tmp_path)).architecture.vocab_size == 64  # tensors decide, not the class


def test_an_output_layer_is_never_invented(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    config(tie_word_embeddings=False).save_pretrained(tmp_path)
    torch.save(
        {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}, tmp_path / "pytorch_model.bin"
    )
    assert "lm_head.weight is missing while config.json says scale_decoder_outputs: false" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"last.ckpt": ""}, "Lightning checkpoint (last.ckpt)"),
        ({"zero_to_fp32.py": "", "global_step500/x.pt": ""}, "DeepSpeed checkpoint; gather it"),
        ({"pytorch_model_fsdp.bin": ""}, "FSDP checkpoint"),
        ({"model.fp16.safetensors": ""}, "rename it to model.safetensors"),
        (
            {"model_index.json": "{}", "text_encoder_2/config.json": "{}"},
            "diffusers pipeline; name one of its text encoders (text_enc",
        ),
        (
            {
                "adapter_config.json": json.dumps(
                    {"peft_type": "LORA", "base_model_name_or_path": "google/flan-t5-base"}
                )
            },
            "PEFT adapter of 'google/flan-t5-base'",
        ),
        ({"adapter_config.json": "[" * 100_000}, "PEFT adapter of 'an unnamed model'"),
    ],
)
def test_other_folders_are_named(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert said in refusal(tmp_path)


def test_placeholders_of_zero_3_are_named(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    config().save_pretrained(tmp_path)
    torch.save({name: torch.zeros(0) for name in state}, tmp_path / "pytorch_model.bin")
    assert "placeholders of DeepSpeed's ZeRO-3" in refusal(tmp_path)
