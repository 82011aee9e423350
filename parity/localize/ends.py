"""The two ends of each stack against PyTorch: embedding, biases and masks; final norm and logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Stack
from t5edge.bundle.parity_report import CheckResult, at_most
from t5edge.bundle.precision import Precision
from t5edge.exporter.graph.assembler import MASKED
from t5edge.exporter.graph.prompts import CACHE_START
from t5edge.parity.limits import judge_error
from t5edge.parity.localize.bounds import as_array, error_bound, error_of, torch_dtype
from t5edge.parity.localize.segments import CutGraph
from t5edge.parity.localize.sublayers import SublayerReference, round_embedding, round_weight

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint

STEM_LENGTH = 160
"""Tokens of the stems' batch: past the last position bucket (128)."""
STEM_PADDING = 20
STEM_PAST = 100
"""Of the stems' batch: padded source tokens, and target tokens that are in the cache."""
POSITIONS = 8
"""Target positions whose logits are compared: the first ones, which most rows have."""


@dataclass
class EndChecks:
    """Stems and heads of a bundle against PyTorch."""

    checkpoint: Checkpoint
    precision: Precision
    graphs: Mapping[Stack, CutGraph]
    reference: SublayerReference

    def stem(self, stack: Stack) -> Iterator[CheckResult]:
        """Embedding, every position bias, and the padding mask."""
        graph, name = self.graphs[stack], f"{stack} stem"
        feeds = self._stem_feeds(stack)
        biases = self._biases(stack)
        outputs = [graph.first_hidden, *biases.values()]
        cross = graph.sublayers[0][1].bias if stack == "decoder" else None
        found = graph.run(feeds, [*outputs, cross] if cross is not None else outputs)
        exact = self.reference.embed(feeds[graph.values["input_ids"]])[0]
        own = round_embedding(exact, self.precision).to(torch_dtype(self.precision))
        yield self._judge(name, "embedding", found[0][0] * graph.scale, exact, own)
        for layer, array in zip(biases, found[1:], strict=False):
            yield from self._bias(stack, layer, array)
        if cross is not None:
            yield self._mask(name, "padding", found[-1], np.broadcast_to(_visible_source(), found[-1].shape))

    def _biases(self, stack: Stack) -> dict[int, Any]:
        """The bias value of every layer that owns one."""
        owners = range(self.checkpoint.architecture.layers(stack) if self.checkpoint.architecture.per_layer_bias else 1)
        return {layer: self.graphs[stack].sublayers[layer][0].bias for layer in owners}

    def _stem_feeds(self, stack: Stack) -> dict[Any, np.ndarray]:
        a, values = self.checkpoint.architecture, self.graphs[stack].values
        ids = (np.arange(STEM_LENGTH, dtype=np.int64) * 7919 % a.vocab_size)[None]
        if stack == "encoder":
            return {values["input_ids"]: ids, values["attention_mask"]: _visible_source().astype(np.int64)}
        past = np.zeros((1, a.num_heads, STEM_PAST, a.d_kv), np.float32)
        start = {values[CACHE_START]: np.zeros(1, np.int64)} if CACHE_START in values else {}
        return start | {
            values["input_ids"]: ids[:, STEM_PAST:],
            values["encoder_attention_mask"]: _visible_source().astype(np.int64),
            values["past_key_values.0.decoder.key"]: past,
        }

    def _bias(self, stack: Stack, layer: int, found: np.ndarray) -> Iterator[CheckResult]:
        """Visible entries are the bias, hidden ones (padding, later keys) are out of reach."""
        exact = self.reference.bias(stack, layer, STEM_LENGTH)
        visible = np.broadcast_to(_visible_source()[:, None, None, :], exact.shape)
        if stack == "decoder":
            exact = exact[:, :, STEM_PAST:]
            visible = np.broadcast_to(np.tri(STEM_LENGTH, dtype=bool)[STEM_PAST:], exact.shape)
        kept = exact.masked_select(_tensor(visible))
        name = f"{stack} stem"
        yield self._judge(name, f"position bias {layer}", found[visible], kept)
        yield self._mask(name, f"mask of bias {layer}", np.where(visible, 0, found), visible)

    def encoder_head(self, hidden: torch.Tensor, encoded: torch.Tensor, text: np.ndarray) -> Iterator[CheckResult]:
        """The final norm: ``last_hidden_state`` from the residual stream, both [batch, source, d_model].

        ``text`` bool [batch, source]: where no padding is.
        """
        graph = self.graphs["encoder"]
        feeds = {graph.last_hidden: as_array(hidden) / graph.scale}
        (found,) = graph.run(feeds, [graph.values["last_hidden_state"]])
        own = self.reference.norm("encoder", hidden.to(torch_dtype(self.precision)))
        yield self._judge("encoder head", "last_hidden_state", found, encoded, own, text)

    def logits(self, hidden: torch.Tensor, ids: np.ndarray, text: np.ndarray) -> Iterator[CheckResult]:
        """Logits of some positions, from the residual stream [batch, target, d_model] and ids [batch, target].

        ``text`` bool [batch, target]: where no padding is.
        """
        graph = self.graphs["decoder"]
        hidden, ids = hidden[:, :POSITIONS].contiguous(), np.ascontiguousarray(ids[:, :POSITIONS])
        feeds = {graph.last_hidden: as_array(hidden) / graph.scale, graph.values["input_ids"]: ids}
        (found,) = graph.run(feeds, [graph.values["logits"]])
        exact, own = (
            self.reference.logits(self.reference.norm("decoder", hidden.to(dtype)), stored)
            for dtype, stored in ((hidden.dtype, lambda rows: rows), (torch_dtype(self.precision), self._stored))
        )
        yield self._judge("decoder head", "logits", found, exact, own, text[:, :POSITIONS])

    def _stored(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the output layer as the precision stores them."""
        round_rows = round_embedding if self.checkpoint.architecture.tied else round_weight
        return round_rows(rows, self.precision)

    def _judge(
        self, name: str, what: str, found: np.ndarray, exact: Any, own: Any = None, text: np.ndarray | None = None
    ) -> CheckResult:
        """Against the rounding of ``own`` (PyTorch at the compute dtype), or of the result itself.

        ``text``: see ``error_of``.
        """
        rounded = exact.to(torch_dtype(self.precision)) if own is None else own
        bound = error_bound(self.precision, error_of(as_array(rounded), exact, text))
        return judge_error(name, what, error_of(found, exact, text), bound)

    def _mask(self, name: str, what: str, found: np.ndarray, visible: np.ndarray) -> CheckResult:
        """How many entries hide what should be seen, or show what should be hidden."""
        wrong = np.where(visible, found != 0, ~(found <= MASKED[self.precision.compute] / 2))
        return at_most(name, f"wrong entries, {what}", float(np.count_nonzero(wrong)), 0.0)


def _visible_source() -> np.ndarray:
    """[1, source] bool: the stems' source with padding at its end."""
    return np.arange(STEM_LENGTH)[None] < STEM_LENGTH - STEM_PADDING


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))
