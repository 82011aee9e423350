"""Tiny random T5 models, and PyTorch as a ``StepModel`` that checks what the protocol promises a backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from t5edge.runtime.generation.options import GenerationOptions
from t5edge.runtime.generation.scores import Generated
from t5edge.runtime.generation.step import Scores, Tokens

VOCAB = 97

TINY_MODELS: dict[str, dict[str, Any]] = {
    "tied-relu": {"d_kv": 5, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 2},
    "untied-gated": {"d_kv": 7, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2, "gated": True},
    "deep-decoder": {"d_kv": 8, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 3, "gated": True},
}
"""Odd on purpose: num_heads * d_kv != d_model = 24, depths differ, 97 is no power of two."""


@dataclass
class TorchState:
    """``hidden`` and ``mask`` have one row per beam: PyTorch does not share them within a sentence."""

    hidden: torch.Tensor
    mask: torch.Tensor
    cache: EncoderDecoderCache
    copies: int


class TorchStep:
    """``StepModel`` over transformers' model; counts its calls, hands out read-only logits."""

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        self.model = model
        self.steps = self.reorders = 0

    @torch.inference_mode()
    def encode(self, input_ids: Tokens, attention_mask: Tokens, copies: int = 1) -> TorchState:
        ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
        hidden = self.model.encoder(ids, attention_mask=mask).last_hidden_state
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return TorchState(hidden.repeat_interleave(copies, 0), mask.repeat_interleave(copies, 0), cache, copies)

    @torch.inference_mode()
    def step(self, state: TorchState, tokens: Tokens) -> Scores:
        assert tokens.dtype == np.int64
        assert len(tokens) == len(state.hidden)
        assert tokens.flags.c_contiguous
        self.steps += 1
        output = self.model(
            encoder_outputs=BaseModelOutput(state.hidden),
            attention_mask=state.mask,
            decoder_input_ids=torch.from_numpy(tokens),
            past_key_values=state.cache,
        )
        logits: Scores = output.logits.numpy()
        logits.flags.writeable = False
        return logits

    @torch.inference_mode()
    def reorder(self, state: TorchState, rows: Tokens) -> None:
        identity = np.arange(len(state.hidden))
        assert np.array_equal(rows // state.copies, identity // state.copies), "a row left its sentence"
        assert not np.array_equal(rows, identity), "nothing to reorder"
        self.reorders += 1
        state.cache.self_attention_cache.reorder_cache(torch.from_numpy(rows))


@dataclass(frozen=True)
class TinyModel:
    """One model, seen by transformers and by us, with a padded batch for it."""

    model: T5ForConditionalGeneration
    input_ids: Tokens
    attention_mask: Tokens

    def expected(self, options: GenerationOptions, normalize_logits: bool = False) -> tuple[Generated, int]:
        """What transformers generates and how it scores that, and in how many steps."""
        settings = {k: v for k, v in asdict(options).items() if v is not None and k != "seed"}
        settings["eos_token_id"] = list(options.eos) or None
        # Without our own cache, transformers 5.23 sizes it by the encoder's depth and fails on deep-decoder.
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        steps: list[None] = []
        hook = self.model.lm_head.register_forward_hook(lambda *_: steps.append(None))
        output = self.model.generate(
            torch.from_numpy(self.input_ids),
            attention_mask=torch.from_numpy(self.attention_mask),
            past_key_values=cache,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
        hook.remove()
        indices, totals = getattr(output, "beam_indices", None), getattr(output, "sequences_scores", None)
        transitions = self.model.compute_transition_scores(output.sequences, output.scores, indices, normalize_logits)
        found = Generated(output.sequences.numpy(), transitions.numpy(), None if totals is None else totals.numpy())
        return found, len(steps)


@lru_cache
def build_tiny_model(name: str, seed: int = 0, batch: int = 4) -> TinyModel:
    """Weights of standard deviation 0.5: the best token wins by a margin; three times that for the end."""
    facts = dict(TINY_MODELS[name])
    feed_forward = "gated-gelu" if facts.pop("gated", False) else "relu"
    config = T5Config(vocab_size=VOCAB, d_model=24, d_ff=37, feed_forward_proj=feed_forward, **facts)
    model = T5ForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig()  # it would fill in what the options leave out
    if name.startswith("untied"):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        config.scale_decoder_outputs = False
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=random)
        model.lm_head.weight[1] *= 3
    numbers = np.random.default_rng(seed)
    input_ids = numbers.integers(2, VOCAB, (batch, 9))
    attention_mask = (np.arange(9) < numbers.integers(1, 10, (batch, 1))).astype(np.int64)
    return TinyModel(model, np.where(attention_mask == 1, input_ids, 0), attention_mask)


@pytest.fixture
def tiny_model_of() -> Callable[..., TinyModel]:
    """Builds (and keeps) a ``TinyModel`` by name and seed."""
    return build_tiny_model


@pytest.fixture
def torch_step() -> Callable[[TinyModel], TorchStep]:
    """Wraps a tiny model's PyTorch model as a ``StepModel``."""
    return lambda tiny: TorchStep(tiny.model)


@pytest.fixture(params=sorted(TINY_MODELS))
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """Every tiny model in turn."""
    return build_tiny_model(request.param)
