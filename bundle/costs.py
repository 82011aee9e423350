"""What a graph costs: operators, weight bytes, floating-point operations at given sizes; in plain arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t5edge.bundle.ports import size_of_axis
from t5edge.bundle.schema import Count


@dataclass(frozen=True)
class GatheredTable:
    """A table of which a run reads one row per token: all of its bytes, and those of a row."""

    bytes: Count
    row_bytes: Count


@dataclass(frozen=True)
class GraphCosts:
    """One graph, without sizes.

    Attributes:
        nodes: how many, and by operator in ``operators``, the most frequent first.
        token_axis: the axis of the graph's tokens, ``source`` or ``target``.
        matmul_elements: elements of all weights of matrix products.
        attention_width: heads times d_kv.
        attentions: how many attentions have keys along an axis (``source``, ``past + target``).
        bytes_read: bytes of weights that every run reads whole.
        gathered: tables of which it reads rows.
    """

    nodes: Count
    operators: Mapping[str, Count]
    token_axis: str
    matmul_elements: Count
    attention_width: Count
    attentions: Mapping[str, Count]
    bytes_read: Count
    gathered: tuple[GatheredTable, ...] = field(default=())

    def weight_bytes(self, sizes: Mapping[str, int]) -> int:
        """Bytes of weights that one run reads at ``sizes`` (batch, source, target, past)."""
        tokens = self._tokens(sizes)
        return self.bytes_read + sum(min(table.bytes, tokens * table.row_bytes) for table in self.gathered)

    def flops(self, sizes: Mapping[str, int]) -> int:
        """Multiplications and additions of matrix products and attentions, two per multiply-add, of one run."""
        queries = sizes["batch"] * sizes[self.token_axis]
        keys = sum(count * size_of_axis(axis, sizes) for axis, count in self.attentions.items())
        return 2 * self._tokens(sizes) * self.matmul_elements + 4 * queries * keys * self.attention_width

    def _tokens(self, sizes: Mapping[str, int]) -> int:
        return sizes["batch"] * sizes[self.token_axis]

    def at(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The figures at ``sizes``, JSON-able."""
        return {
            "nodes": self.nodes,
            "operators": dict(self.operators),
            "weight_bytes": self.weight_bytes(sizes),
            "flops": self.flops(sizes),
        }
