"""The sublayers of one layer against PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Stack
from t5edge.bundle.parity_report import CheckResult, failure
from t5edge.bundle.precision import Precision
from t5edge.exporter.graph.assembler import MASKED
from t5edge.parity.limits import judge_error
from t5edge.parity.localize.bounds import as_array, error_bound, error_of
from t5edge.parity.localize.segments import CutGraph, Sublayer
from t5edge.parity.localize.sublayers import LayerRun, round_block

if TYPE_CHECKING:
    import torch

    KeysValues = tuple[torch.Tensor, torch.Tensor]

SELF, CROSS, FEED_FORWARD = "self-attention", "cross-attention", "feed-forward"
KINDS: Mapping[Stack, tuple[str, ...]] = {
    "encoder": (SELF, FEED_FORWARD),
    "decoder": (SELF, CROSS, FEED_FORWARD),
}
"""Sublayers of one block, in order."""


@dataclass
class LayerChecks:
    """One layer. ``run`` is PyTorch's; its block is rounded to the precision on the way, so this runs once.

    ``source_hidden``: in the decoder, the encoder's residual stream before its final norm, float32.
    ``text``: bool [batch, length] of each stack, False at padding, which does not count; all counts without it.
    """

    precision: Precision
    graphs: Mapping[Stack, CutGraph]
    stack: Stack
    layer: int
    run: LayerRun
    source_hidden: torch.Tensor | None = None
    text: Mapping[Stack, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph, self.name = self.graphs[self.stack], f"{self.stack} block {self.layer}"
        target = self.run.steps[0].hidden.shape[1]
        self.queries = slice(target // 2 if self.stack == "decoder" else 0, target)

    def results(self) -> Iterator[CheckResult]:
        """A result for each sublayer; in the decoder also for the cross keys and values."""
        cuts, kinds = self.graph.sublayers.get(self.layer, []), KINDS[self.stack]
        if len(cuts) != len(kinds):
            yield failure(self.name, f"{len(cuts)} additions to the residual stream instead of {len(kinds)}")
            return
        own = self.run.keys_values(cross=False)
        cross = self.run.keys_values(cross=True) if self.stack == "decoder" else None
        round_block(self.run.block, self.precision)
        if cross is not None:
            yield from self._cross_keys_values(cross)
        rerun = self.run.rerun()
        for index, kind in enumerate(kinds):
            feeds = self._feeds(kind, cuts[index], own, cross)
            yield self._sublayer(kind, cuts[index], index, feeds, rerun[index])

    def _feeds(self, kind: str, cut: Sublayer, own: KeysValues, cross: KeysValues | None) -> dict[Any, np.ndarray]:
        """Mask and cache ports of an attention: the first half of the decoder's own keys, all of the encoder's."""
        if kind == FEED_FORWARD:
            return {}
        assert cut.bias is not None
        if kind == CROSS:
            assert cross is not None
            assert self.run.cross is not None
            every_query = self.run.cross.expand(-1, -1, self.queries.stop - self.queries.start, -1)
            return {cut.bias: self._masked(every_query), **self._caches("encoder", cross), **self._sizes(every_query)}
        feeds = {cut.bias: self._masked(self.run.bias[:, :, self.queries])}
        if self.stack == "decoder":
            past = tuple(half[:, :, : self.queries.start] for half in own)
            feeds |= self._caches("decoder", past)
        return feeds

    def _sizes(self, mask: torch.Tensor) -> dict[Any, np.ndarray]:
        """Ports whose shapes tell the numbers of rows, queries and sentences; ``mask`` [rows, 1, queries, source]."""
        rows, _, queries, source = mask.shape
        shapes = {"input_ids": (rows, queries), "encoder_attention_mask": (rows, source)}
        return {self.graph.values[name]: np.ones(shape, np.int64) for name, shape in shapes.items()}

    def _caches(self, origin: str, halves: Any) -> dict[Any, np.ndarray]:
        names = [f"past_key_values.{self.layer}.{origin}.{half}" for half in ("key", "value")]
        return {self.graph.values[name]: as_array(half) for name, half in zip(names, halves, strict=True)}

    def _masked(self, bias: torch.Tensor) -> np.ndarray:
        """An additive mask as the graphs spell it: hidden keys get the graph's own lowest number."""
        array = as_array(bias)
        hidden = array <= np.finfo(np.float32).min / 2
        return np.where(hidden, MASKED[self.precision.compute], array).astype(np.float32)

    def _sublayer(self, kind: str, cut: Sublayer, index: int, feeds: dict[Any, np.ndarray], rerun: Any) -> CheckResult:
        """What the sublayer adds, and the residual stream behind it; the worse of the two by its own limit."""
        step = self.run.steps[index]
        feeds = {cut.hidden: as_array(step.hidden[:, self.queries]) / self.graph.scale, **feeds}
        found = [array * self.graph.scale for array in self.graph.run(feeds, [cut.added, cut.out])]
        text = self.text[self.stack][:, self.queries] if self.text else None
        errors = {}
        for what, array, exact, rounded in zip(("added", "out"), found, (step.added, step.out), rerun, strict=True):
            wanted = exact[:, self.queries]
            own = error_of(as_array(rounded[:, self.queries]), wanted, text)
            errors[what] = (error_of(array, wanted, text), error_bound(self.precision, own))
        worst = max(errors, key=lambda what: errors[what][0] / errors[what][1])
        return judge_error(self.name, kind, *errors[worst], where=worst, errors=errors)

    def _cross_keys_values(self, exact: KeysValues) -> Iterator[CheckResult]:
        """The encoder graph's keys and values for this decoder layer; the block is rounded by now.

        They start from ``last_hidden_state`` or, where quantization needs one, from a final norm of their own.
        """
        encoder = self.graphs["encoder"]
        outputs = [encoder.values[f"present.{self.layer}.encoder.{half}"] for half in ("key", "value")]
        assert self.run.encoded is not None
        feeds = {encoder.values["last_hidden_state"]: as_array(self.run.encoded)}
        if self.source_hidden is not None:
            feeds[encoder.last_hidden] = as_array(self.source_hidden) / encoder.scale
        found = encoder.run(feeds, outputs)
        rounded = self.run.keys_values(cross=True)
        text = self.text.get("encoder")
        for half, array, wanted, own in zip(("keys", "values"), found, exact, rounded, strict=True):
            by_position = wanted.transpose(1, 2)
            bound = error_bound(self.precision, error_of(as_array(own.transpose(1, 2)), by_position, text))
            yield judge_error(self.name, f"cross {half}", error_of(array.swapaxes(1, 2), by_position, text), bound)
