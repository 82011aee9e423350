"""Compare every part of a bundle with PyTorch's, and so name the ones that are wrong.

For each layer PyTorch loads that layer's weights and runs it in float32. Every sublayer of the bundle is then fed what
PyTorch fed its own, and what it adds to the residual stream is compared: an error shows where it is made, only there.
Padding does not count.

    encoder stem     embedding, position bias of every layer that has one, padding
    encoder block i  self-attention, feed-forward
    encoder head     last_hidden_state
    decoder stem     embedding, position bias, causality, padding
    decoder block i  cross keys and values, self-attention (half of the keys cached), cross-attention, feed-forward
    decoder head     logits of the first few positions

Limits: float32 by the precision's bound; otherwise twice (or by the precision's factor) the error that PyTorch makes at
the same place when its block is rounded as the precision says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from t5edge.bundle.architecture import Stack
from t5edge.bundle.parity_report import CheckResult
from t5edge.exporter.checkpoint.open import Checkpoint
from t5edge.exporter.reference.texts import target_mask
from t5edge.parity.localize.ends import EndChecks
from t5edge.parity.localize.layers import LayerChecks
from t5edge.parity.localize.segments import CutGraph
from t5edge.parity.localize.sublayers import LayerRun, SublayerReference
from t5edge.parity.subject import Opener
from t5edge.parity.workload import build_workload
from t5edge.progress import Progress, Silent

if TYPE_CHECKING:
    import torch


def locate(opener: Opener, checkpoint: Checkpoint, progress: Progress | None = None) -> list[CheckResult]:
    """Compare every part of a bundle with the checkpoint it was made from, on ONNX Runtime's CPU kernels.

    A result's ``name`` is the part (``decoder block 17``), its ``measure`` ends with the kind (``feed-forward``).
    """
    layers = checkpoint.architecture.encoder_layers + checkpoint.architecture.decoder_layers
    with (progress or Silent()).stage("layer by layer", layers, "layers") as stage:
        return list(_Comparison(opener, checkpoint, stage.advance).results())


class _Comparison:
    """One run over the model. A layer's results gather while PyTorch has that layer in memory."""

    def __init__(self, opener: Opener, checkpoint: Checkpoint, advance: Callable[[], None]) -> None:
        import torch

        self.precision, self.advance = opener.precision, advance
        self.batch = build_workload(checkpoint, opener.limits).texts
        targets = target_mask(self.batch.decoder_input_ids, checkpoint.architecture.pad_token_id)
        self.text: dict[Stack, np.ndarray] = {"encoder": self.batch.attention_mask.astype(bool), "decoder": targets}
        self.graphs: dict[Stack, CutGraph] = {
            stack: CutGraph(opener.folder, stack, self.precision.compute, opener.rescale_k(stack))
            for stack in checkpoint.architecture.stacks
        }
        self.reference = SublayerReference(checkpoint, torch.float32, on_layer=self._compare)
        self.ends = EndChecks(checkpoint, self.precision, self.graphs, self.reference)
        self.found: list[CheckResult] = []
        self.source_hidden: torch.Tensor | None = None

    def results(self) -> Iterator[CheckResult]:
        yield from self.ends.stem("encoder")
        encoded = self.reference.encode(self.batch)
        self.source_hidden = self.last_hidden
        yield from self._taken()
        yield from self.ends.encoder_head(self.last_hidden, encoded, self.text["encoder"])
        if "decoder" not in self.graphs:
            return
        yield from self.ends.stem("decoder")
        self.reference.decode(self.batch, encoded)
        yield from self._taken()
        yield from self.ends.logits(self.last_hidden, self.batch.decoder_input_ids, self.text["decoder"])

    def _taken(self) -> list[CheckResult]:
        found, self.found = self.found, []
        return found

    def _compare(self, stack: Stack, layer: int, run: LayerRun) -> None:
        checks = LayerChecks(self.precision, self.graphs, stack, layer, run, self.source_hidden, self.text)
        self.found += checks.results()
        self.last_hidden: torch.Tensor = run.steps[-1].out
        self.advance()
