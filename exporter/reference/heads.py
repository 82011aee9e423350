"""Heads in PyTorch, on the encoder's output or on that of the decoder below one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import HEADS, Architecture

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from t5edge.exporter.reference.protocol import Weights
    from t5edge.exporter.reference.texts import Batch

    Decode = Callable[[Batch, torch.Tensor], torch.Tensor]
    """Of a batch and the encoder's output, [batch, source, d_model]: the decoder's, likewise, fed ``shifted_right``."""


def head_logits(weights: Weights, hidden: torch.Tensor, batch: Batch, decode: Decode) -> np.ndarray | None:
    """Float32 logits [batch, source, labels], start and end as two of them, or [batch, labels]; None without a head.

    ``hidden`` is the encoder's output, [batch, source, d_model]; ``decode`` runs the decoder below a head over it.
    """
    import torch

    a = weights.architecture
    if not a.head:
        return None
    states = hidden if a.head == "tokens" else decode(batch, hidden)
    read = [weights.read(name).to(hidden.dtype) for name in HEADS[a.head]]
    if a.head == "text":
        ends = torch.from_numpy(batch.input_ids) == a.eos_token_id
        last = ends.shape[1] - 1 - ends.flip(1).int().argmax(dim=1)
        states = torch.tanh(torch.nn.functional.linear(states[torch.arange(len(last)), last], *read[:2]))
    logits: np.ndarray = torch.nn.functional.linear(states, *read[-2:]).float().numpy()
    return logits


def shifted_right(batch: Batch, start: int) -> np.ndarray:
    """What a decoder is fed of a source: the start token, then all but the last, int64 [batch, source]."""
    shifted = np.roll(batch.input_ids, 1, axis=1)
    shifted[:, 0] = start
    return shifted


@dataclass(frozen=True)
class WithDecoder:
    """The weights of a head as those of a model with a decoder."""

    weights: Weights

    @property
    def architecture(self) -> Architecture:
        return self.weights.architecture.with_head_as_decoder()

    @property
    def generation_config(self) -> dict[str, Any]:
        return {}

    @property
    def sentence(self) -> None:
        return None

    def names(self) -> list[str]:
        return list(self.architecture.tensor_shapes())

    def read(self, name: str) -> torch.Tensor:
        return self.weights.read(name)
