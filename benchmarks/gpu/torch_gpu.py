"""PyTorch on the GPU: the reference's logits, how far its own 16 bits are from them, and its speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import T5ForConditionalGeneration

from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.reference.whole import build_torch_model

NEW_TOKENS = (8, 64)
"""The step is the slope between generations of so many tokens."""
ROUNDS = 5


@cache
def reference(model: str, seed: int | None, dtype: str, device: str) -> Any:
    """transformers' model of a checkpoint with every weight in ``dtype`` on ``device``; float32 without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return build_torch_model(open_checkpoint(model, random_weights=seed), getattr(torch, dtype)).to(device).eval()


def logits(model: Any, ids: np.ndarray, mask: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Teacher-forced logits float32 [batch, target, vocab]."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        found = model(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            decoder_input_ids=torch.from_numpy(targets).to(device),
        )
    answer: np.ndarray = found.logits.float().cpu().numpy()
    return answer


def read_gb_s(device: str, size: int = 2**30) -> float:
    """Bytes that a sum over ``size`` bytes reads in a second, in 10^9: the device's read bandwidth."""
    data = torch.ones(size // 4, dtype=torch.float32, device=device)
    seconds = median_seconds(lambda: data.sum().item(), rounds=20)
    return size / seconds / 1e9


def median_seconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median of ``rounds`` runs after two for warming up; ``run`` returns when its result is there."""
    for _ in range(2):
        run()
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def per_token_seconds(generate: Callable[[int], object]) -> float:
    """Seconds per token beyond the first ones: (t(64) - t(8)) / 56."""
    few, many = (median_seconds(lambda new=new: generate(new)) for new in NEW_TOKENS)  # type: ignore[misc]
    return (many - few) / (NEW_TOKENS[1] - NEW_TOKENS[0])


def timings(model: T5ForConditionalGeneration, compiled: bool, sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Encoder and step of every (batch, source); ``compiled``: torch.compile with a cache of static length."""
    settings: dict[str, Any] = {}
    with suppress(ValueError, ImportError):  # transformers before T5 had it
        for part in (model, model.get_encoder(), model.get_decoder()):  # transformers 5.17 sets the one named alone
            part.set_attn_implementation("sdpa")
    encoder = model.get_encoder()
    if compiled:
        model.forward = torch.compile(model.forward, dynamic=False)  # type: ignore[method-assign]
        encoder, settings = torch.compile(encoder, dynamic=False), {"cache_implementation": "static"}
    return [_timing(model, encoder, settings, batch, source) for batch, source in sizes]


def _timing(model: Any, encoder: Any, settings: dict[str, Any], batch: int, source: int) -> dict[str, Any]:
    device = next(model.parameters()).device
    ids = torch.from_numpy(example(batch, source, model.config.vocab_size)).to(device)
    mask = torch.ones_like(ids)

    def encode() -> object:
        hidden = encoder(input_ids=ids, attention_mask=mask)[0]
        return hidden[0, 0, 0].item()  # waits for the device

    def generate(new: int) -> object:
        rows = model.generate(
            ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=new, min_new_tokens=new, **settings
        )
        return rows[0, -1].item()

    with torch.inference_mode():
        return row(batch, source, median_seconds(encode), per_token_seconds(generate))


def example(batch: int, source: int, vocabulary: int) -> np.ndarray:
    """Random ids int64 [batch, source], the same for everyone."""
    return np.random.default_rng(0).integers(3, vocabulary, (batch, source))


def row(batch: int, source: int, encoder: float, step: float) -> dict[str, Any]:
    """One size: milliseconds."""
    return {"batch": batch, "source": source, "encoder_ms": 1e3 * encoder, "step_ms": 1e3 * step}
