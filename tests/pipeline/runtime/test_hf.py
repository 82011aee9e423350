from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from support.bundles import Workshop
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.reference.whole import build_torch_model
from t5edge.runtime.hf import T5EdgeForConditionalGeneration

TEXTS = ("spell 1984", "spell 7", "spell 60321")


@pytest.fixture(scope="module")
def ours(demo: Workshop) -> T5EdgeForConditionalGeneration:
    return T5EdgeForConditionalGeneration.from_bundle(demo.bundle("fp32"))


@pytest.fixture(scope="module")
def theirs() -> Any:
    return build_torch_model(open_checkpoint("t5-demo"), torch.float32)


@pytest.fixture(scope="module")
def inputs(ours: T5EdgeForConditionalGeneration) -> dict[str, torch.Tensor]:
    ids, mask = ours.bundle.tokenizer.encode(TEXTS)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 24},
        {"max_new_tokens": 24, "num_beams": 4},
        {"max_new_tokens": 24, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"max_new_tokens": 12, "min_new_tokens": 12, "repetition_penalty": 1.3},
    ],
    ids=["greedy", "beam", "several-beams", "processors"],
)
def test_the_tokens_are_those_of_transformers(
    ours: T5EdgeForConditionalGeneration, theirs: Any, inputs: dict[str, torch.Tensor], settings: dict[str, Any]
) -> None:
    expected = theirs.generate(**inputs, **settings)
    assert torch.equal(ours.generate(**inputs, **settings), expected)
    assert expected.shape[1] > 3


def test_sampling_draws_what_transformers_draws(
    ours: T5EdgeForConditionalGeneration, theirs: Any, inputs: dict[str, torch.Tensor]
) -> None:
    drawn = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        drawn.append(model.generate(**inputs, max_new_tokens=8, do_sample=True, top_k=5))
    assert torch.equal(*drawn)


def test_the_bundle_tokenizer_reads_the_answer(
    ours: T5EdgeForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    answer = ours.bundle.tokenizer.decode(ours.generate(**inputs, max_new_tokens=40).numpy())
    assert answer == ours.bundle.generate_text(list(TEXTS), max_new_tokens=40)


def test_scores_and_a_generation_config_pass_through(
    ours: T5EdgeForConditionalGeneration, inputs: dict[str, torch.Tensor]
) -> None:
    config = GenerationConfig(
        max_new_tokens=3, decoder_start_token_id=0, pad_token_id=0, output_scores=True, return_dict_in_generate=True
    )
    output = ours.generate(**inputs, generation_config=config)
    assert len(output.scores) == 3
    assert all(score.shape == (len(TEXTS), ours.bundle.vocab_size) for score in output.scores)


def test_teacher_forced_logits(
    ours: T5EdgeForConditionalGeneration, theirs: Any, inputs: dict[str, torch.Tensor]
) -> None:
    targets = torch.tensor([[0, 5, 9]] * len(TEXTS))
    expected = theirs(**inputs, decoder_input_ids=targets).logits
    torch.testing.assert_close(ours(**inputs, decoder_input_ids=targets).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_runtime_does_without_it() -> None:
    code = (
        "import sys, t5edge.runtime.model; assert not {'torch', 'transformers', 't5edge.runtime.hf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
