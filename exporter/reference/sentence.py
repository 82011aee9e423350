"""Sentence embeddings in PyTorch: pooling, dense layers and length 1, as sentence-transformers computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from t5edge.bundle.records import SentenceFacts

if TYPE_CHECKING:
    import torch


def sentence_embedding(
    hidden: torch.Tensor, mask: torch.Tensor, facts: SentenceFacts, read: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """[batch, dimension] of hidden states float32 [batch, source, d_model] and the mask int64 [batch, source]."""
    import torch

    text = mask == 1 if not facts.include_prompt else mask != 0
    found = torch.cat([pooled(mode, hidden, text, mask != 0) for mode in facts.pooling], dim=-1)
    for step in facts.steps:
        if step.kind == "normalize":
            found = torch.nn.functional.normalize(found, dim=-1)
            continue
        bias = read(f"{step.weights}bias").float() if step.bias else None
        found = torch.nn.functional.linear(found, read(f"{step.weights}weight").float(), bias)
        if step.activation is not None:
            found = getattr(torch.nn, step.activation)()(found)
    return found


def pooled(mode: str, hidden: torch.Tensor, text: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """[batch, d_model]; ``text`` bool [batch, source]: what is pooled, ``seen``: what is no padding."""
    import torch

    if mode == "max":
        return hidden.masked_fill(~text[..., None], float("-inf")).amax(dim=1)
    rows, positions = torch.arange(len(hidden)), torch.arange(text.shape[1])
    if mode == "cls":
        return hidden[rows, text.int().argmax(dim=1)]
    if mode == "lasttoken":
        return hidden[rows, torch.where(text, positions, -1).amax(dim=1)]
    weights = text.float()
    if mode == "weightedmean":
        weights = weights * (positions + 1 - seen.int().argmax(dim=1, keepdim=True))
    total = (hidden * weights[..., None]).sum(dim=1)
    size = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return total / (size.sqrt() if mode == "mean_sqrt_len_tokens" else size)
