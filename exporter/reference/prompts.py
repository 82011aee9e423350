"""Learnt prompts in PyTorch: embeddings of ids outside the vocabulary, and caches that begin with a prefix.

What an id means is said in ``exporter.graph.prompts``. The whole model runs rows of unlike prefixes
apart, each with its own as it is; block by block they run together, padded as in the graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import VIRTUAL_TOKENS, prefix_name
from t5edge.exporter.reference.cache import new_cache

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.reference.protocol import Weights


def embed_source(checkpoint: Weights, ids: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Embeddings [batch, length, d_model] of words and virtual tokens; ``ids`` int64 [batch, length]."""
    import torch

    virtual = checkpoint.read(VIRTUAL_TOKENS).to(dtype) if checkpoint.architecture.virtual_tokens else None
    return _look_up(checkpoint.read("shared.weight"), virtual, torch.from_numpy(ids), dtype)


def _look_up(words: torch.Tensor, virtual: torch.Tensor | None, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    found = words[ids.clamp(0, len(words) - 1)].to(dtype)
    if virtual is not None:
        learnt = ids >= len(words)
        found[learnt] = virtual[ids[learnt] - len(words)]
    return found


def prompted_embedding(words: torch.Tensor, virtual: torch.Tensor | None) -> Any:
    """A module that stands for ``encoder.embed_tokens``: ``words`` [vocab, d_model], ``virtual`` [tokens, d_model]."""
    import torch

    class PromptedEmbedding(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return _look_up(words, virtual, ids, words.dtype)

    return PromptedEmbedding()


def by_prefix(input_ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each prefix that rows of ``input_ids`` int64 [batch, source] name, 0 for none, and the numbers of its rows."""
    named = np.maximum(-input_ids.min(axis=1), 0)
    for prefix in np.unique(named):
        yield int(prefix), np.flatnonzero(named == prefix)


def prefix_states(checkpoint: Weights, prefix: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each decoder layer, [heads, tokens, d_kv], of prefix number ``prefix``; none for 0."""
    a = checkpoint.architecture
    if not prefix:
        return []
    start = a.prefix_length - a.prefix_lengths[prefix - 1]
    shape, layers = (a.num_heads, a.prefix_length, a.d_kv), range(a.decoder_layers)
    read = [[checkpoint.read(prefix_name(layer, half)) for half in ("key", "value")] for layer in layers]
    key_values = [[table[prefix].reshape(shape)[:, start:].to(dtype) for table in both] for both in read]
    return [(key, value) for key, value in key_values]


def cache_of(states: list[tuple[torch.Tensor, torch.Tensor]], rows: int) -> Any:
    """A cache for ``rows`` rows whose self-attention begins with ``states``; of cross-attention nothing is in it."""
    return new_cache([tuple(half.expand(rows, -1, -1, -1).clone() for half in layer) for layer in states] or None)


class PaddedPrefixes:
    """The prefixes of a batch's rows, each padded on the left; of ``length`` 0 where no row has one."""

    def __init__(self, checkpoint: Weights, input_ids: np.ndarray) -> None:
        """``input_ids`` int64 [batch, source]."""
        a = checkpoint.architecture
        self._checkpoint, self._rows = checkpoint, np.maximum(-input_ids.min(axis=1), 0)
        self.length = a.prefix_length if self._rows.any() else 0
        self._starts = np.array([self.length, *(a.prefix_length - length for length in a.prefix_lengths)])

    def hide(self, bias: torch.Tensor) -> torch.Tensor:
        """[1, heads, length + target, length + target] -> that of the target's positions, padding of a row hidden."""
        import torch

        if not self.length:
            return bias
        hidden = torch.arange(bias.shape[-1])[None] < torch.from_numpy(self._starts[self._rows])[:, None]
        return bias[:, :, self.length :].masked_fill(hidden[:, None, None], torch.finfo(bias.dtype).min)

    def cache(self, layer: int, dtype: torch.dtype, copies: int = 1) -> tuple[Any, ...]:
        """A cache of one layer, number 0 in it, that begins with its keys and values; nothing without prefixes.

        ``copies``: how often the batch's rows follow each other.
        """
        if not self.length:
            return ()
        a = self._checkpoint.architecture
        tables = (self._checkpoint.read(prefix_name(layer, half)) for half in ("key", "value"))
        rows = np.tile(self._rows, copies)
        shape = (len(rows), a.num_heads, a.prefix_length, a.d_kv)
        return (new_cache([tuple(table[rows].reshape(shape).to(dtype) for table in tables)]),)
