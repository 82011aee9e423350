"""The inputs of every point on real texts: one layer in memory at a time, padding left out, both stacks.

The decoder runs teacher-forced in one pass. Causality makes position t's activations those of cached step t, so every
step with a past is in the sample, not only the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.calibration.points import OUTPUT, QuantizationPoint
from t5edge.errors import UserError
from t5edge.exporter.reference.streamed import StreamedReference
from t5edge.exporter.reference.texts import target_mask

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch

MAX_ROWS = 4096
"""Tokens kept per point; further ones only raise the channels' maxima."""

OnPoint = Callable[[QuantizationPoint, "Sample"], None]


@dataclass(frozen=True)
class Sample:
    """A point's input: ``rows`` float32 [tokens, in], ``channel_max`` float32 [in] over every token that ran."""

    rows: torch.Tensor
    channel_max: torch.Tensor

    @property
    def largest(self) -> float:
        return float(self.channel_max.max())


def collect_inputs(
    checkpoint: Checkpoint,
    batches: Sequence[Batch],
    points: Sequence[QuantizationPoint],
    on_point: OnPoint,
    on_layer: Callable[[], None] | None = None,
) -> None:
    """Hand every point its sample, in the order they run, then forget it.

    Raises:
        UserError: an activation is NaN or infinite.
    """
    import torch

    pad = checkpoint.architecture.pad_token_id
    collector = _Collector(batches, pad, points, on_point, on_layer)
    reference = StreamedReference(checkpoint, torch.float32, collector.progress)
    encoded = reference.encode_all(batches)
    collector.finish()
    collector.give([point for point in points if point.role == "cross_kv"], encoded, "source")
    if not any(point.graph == "decoder" for point in points):
        return  # a decoder that stays weight-only has no ranges to learn
    decoded = reference.decode_all(batches, encoded)
    collector.finish()
    collector.give([point for point in points if point.name == OUTPUT], decoded, "target")


class _Collector:
    """Hooks on the block in memory; the layer's points are handed over when the next one begins."""

    def __init__(
        self,
        batches: Sequence[Batch],
        pad: int,
        points: Sequence[QuantizationPoint],
        on_point: OnPoint,
        on_layer: Callable[[], None] | None,
    ) -> None:
        self._points, self._on_site, self._on_layer = points, on_point, on_layer
        self._masks = {
            "source": [batch.attention_mask.astype(bool) for batch in batches],
            "target": [target_mask(batch.decoder_input_ids, pad) for batch in batches],
        }
        self._pending: list[tuple[QuantizationPoint, list[torch.Tensor]]] = []
        self._side = "source"

    def progress(self, stack: str, layer: int, block: Any) -> None:
        """Called before a layer runs."""
        self.finish()
        self._side = "source" if stack == "encoder" else "target"
        name = f"{stack}.block.{layer}"
        for point in self._points:
            if point.block == name and point.role != "cross_kv":
                seen: list[torch.Tensor] = []
                module = block.get_submodule(point.modules[0])
                module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
                self._pending.append((point, seen))
        if self._on_layer is not None:
            self._on_layer()

    def finish(self) -> None:
        """Hand over what the last layer's points saw."""
        pending, self._pending = self._pending, []
        for point, seen in pending:
            self.give([point], seen, self._side)

    def give(self, points: Sequence[QuantizationPoint], inputs: Sequence[torch.Tensor], side: str) -> None:
        """The same inputs, one tensor [batch, length, in] per batch, to each point."""
        if not points:
            return
        sample = _sample(list(_rows(inputs, self._masks[side])))
        if not bool(sample.channel_max.isfinite().all()):
            raise UserError(
                f"the input of {points[0].name} holds NaN or infinity on the calibration texts; "
                "the checkpoint is broken, or a text is not meant for it."
            )
        for point in points:
            self._on_site(point, sample)


def _rows(inputs: Sequence[torch.Tensor], masks: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
    import torch

    for tensor, mask in zip(inputs, masks, strict=True):
        yield tensor[torch.from_numpy(mask)].float()


def _sample(parts: Sequence[torch.Tensor]) -> Sample:
    """All rows for the maxima; of more than ``MAX_ROWS`` evenly spaced ones to keep."""
    import torch

    channel_max = torch.stack([part.abs().amax(dim=0) for part in parts]).amax(dim=0)
    total = sum(len(part) for part in parts)
    if total > MAX_ROWS:
        parts = [part[torch.linspace(0, len(part) - 1, max(1, len(part) * MAX_ROWS // total)).long()] for part in parts]
    return Sample(torch.cat(list(parts)), channel_max)
