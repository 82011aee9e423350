"""The reference against transformers' own loading, and where transformers' own loading is not enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.tiny_models import TinyModel, find_tiny_model, save_tiny_model, tiny_models
from support.transformers_models import transformers_model
from t5edge.exporter.checkpoint.open import Checkpoint, open_checkpoint
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.reference.cache import cache_keyword
from t5edge.exporter.reference.whole import build_meta_model, build_torch_model


def logits(model: Any, vocab_size: int) -> torch.Tensor:
    """``[2, 5, vocab]`` float32: logits of a padded batch."""
    draw = torch.Generator().manual_seed(0)
    source = torch.randint(2, vocab_size, (2, 9), generator=draw)
    target = torch.randint(2, vocab_size, (2, 5), generator=draw)
    mask = torch.ones_like(source)
    mask[1, 6:] = 0
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    return result.float()


def drawn(tiny: TinyModel) -> Checkpoint:
    return Checkpoint(tiny.name, tiny.config, RandomStore(tiny.architecture, 1))


@pytest.mark.parametrize("tiny", tiny_models(), ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("layout", ["transformers5", "transformers4"])
def test_logits_are_those_of_from_pretrained(tmp_path: Path, tiny: TinyModel, layout: Any) -> None:
    folder = save_tiny_model(tiny, tmp_path, 1, layout)
    ours = build_torch_model(open_checkpoint(str(folder)), torch.float32)
    theirs = transformers_model(folder, tiny.config["model_type"], dtype=torch.float32)
    if tiny.config["model_type"] == "umt5":  # transformers 5 scales its logits whatever the tying, 4.57 and t5x do not
        theirs.config.tie_word_embeddings = tiny.architecture.tied
    vocab_size = tiny.architecture.vocab_size
    assert torch.equal(logits(ours, vocab_size), logits(theirs, vocab_size))


@pytest.mark.parametrize("name", ["t5-tiny", "v1.1-tiny", "mt5-tiny", "umt5-tiny"])
def test_what_transformers_saves_reads_back(tmp_path: Path, name: str) -> None:
    tiny = find_tiny_model(name)
    model = build_torch_model(drawn(tiny), torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    saved = open_checkpoint(str(tmp_path))
    assert saved.architecture.tensor_shapes() == tiny.architecture.tensor_shapes()
    again = build_torch_model(saved, torch.float32)
    assert torch.equal(logits(again, tiny.architecture.vocab_size), logits(model, tiny.architecture.vocab_size))


def test_tied_head_is_one_parameter_and_untied_is_not() -> None:
    tied = build_torch_model(drawn(find_tiny_model("t5-tiny")), torch.float32)
    assert tied.lm_head.weight is tied.shared.weight is tied.encoder.embed_tokens.weight
    untied = build_torch_model(drawn(find_tiny_model("v1.1-tiny")), torch.float32)
    assert untied.lm_head.weight is not untied.shared.weight
    assert untied.shared.weight is untied.decoder.embed_tokens.weight


def test_logit_scale_follows_the_facts_not_the_tying() -> None:
    tiny = find_tiny_model("v1.1-tiny")
    rescaled = Checkpoint("x", {**tiny.config, "scale_decoder_outputs": True}, RandomStore(tiny.architecture, 1))
    plain, scaled = (
        logits(build_torch_model(checkpoint, torch.float32), tiny.architecture.vocab_size)
        for checkpoint in (drawn(tiny), rescaled)
    )
    torch.testing.assert_close(plain * tiny.architecture.d_model**-0.5, scaled)


def test_parameters_are_counted_as_transformers_counts_them() -> None:
    for tiny in tiny_models():
        model = build_meta_model(tiny.architecture)
        assert sum(weight.numel() for weight in model.parameters()) == tiny.architecture.parameters
        assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wo_in_float32_as_transformers_keeps_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny = find_tiny_model("v1.1-tiny")
    checkpoint = open_checkpoint(str(save_tiny_model(tiny, tmp_path, 1)))
    plain = build_torch_model(checkpoint, dtype)
    assert {weight.dtype for weight in plain.parameters()} == {dtype}
    kept = build_torch_model(checkpoint, dtype, keep_wo_float32=True)
    theirs = transformers_model(tmp_path, "t5", dtype=dtype)
    if dtype == torch.float16:
        assert theirs.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
        assert torch.equal(logits(kept, 149), logits(theirs, 149))
    assert kept.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    assert not torch.equal(logits(kept, 149), logits(plain, 149))


def test_demo_answers_held_out_prompts() -> None:
    import json

    from tokenizers import Tokenizer

    checkpoint = open_checkpoint("t5-demo")
    model = build_torch_model(checkpoint, torch.float32)
    assert not model.training
    tokenizer = Tokenizer.from_file(str(checkpoint.tokenizer_file()))
    path = checkpoint.file("heldout.jsonl")
    assert path is not None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:4]]
    for row in rows:
        ids = torch.tensor([tokenizer.encode(row["source"]).ids])
        with torch.no_grad():
            answer = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40)
        assert tokenizer.decode(answer[0].tolist()) == row["target"]


def test_the_cache_goes_by_the_name_that_the_installed_forward_has() -> None:
    """transformers 5.24 says ``cache`` and warns of the older name, which 5.40 no longer knows."""
    import inspect

    from transformers import T5ForConditionalGeneration
    from transformers.models.t5.modeling_t5 import T5Block

    def newer(hidden: Any, cache: Any = None, **rest: Any) -> None: ...
    def older(hidden: Any, past_key_values: Any = None, cache_position: Any = None) -> None: ...

    assert (cache_keyword(newer), cache_keyword(older)) == ("cache", "past_key_values")
    for forward in (T5Block.forward, T5ForConditionalGeneration.forward):
        assert cache_keyword(forward) in inspect.signature(forward).parameters
