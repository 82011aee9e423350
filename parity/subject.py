"""What a rung works on: the opened bundle, PyTorch's answers, the batches, the traced blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.precision import Precision
from t5edge.parity.limits import OwnErrors, bounds_errors
from t5edge.parity.reference import OutputErrors, Outputs, Reference, compare_outputs
from t5edge.parity.workload import Workload
from t5edge.runtime.backend import find_backend
from t5edge.runtime.model import BundleModel, open_model

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch
    from t5edge.kernels.block import Block, BlockKind


@dataclass
class Subject:
    """One bundle under test. ``blocks`` are the fused blocks it was assembled from."""

    folder: Path
    manifest: Manifest
    checkpoint: Checkpoint
    row: Precision
    model: BundleModel
    target: str
    workload: Workload
    reference: Reference
    blocks: Mapping[BlockKind, Block]

    @property
    def pad(self) -> int:
        return self.checkpoint.architecture.pad_token_id

    @cached_property
    def measured(self) -> OwnErrors:
        """The bundle's own errors on texts."""
        return self.errors("texts", self.workload.texts).own()

    def unit(self, *names: str) -> OwnErrors | None:
        """What errors on some batches count in; None where the row's bounds stand as they are.

        PyTorch's own error; for quantized rows the bundle's error on texts, amplified as PyTorch's is there.
        """
        own = self.reference.own_of(*names)
        if own is None or bounds_errors(self.row):
            return own
        texts = self.reference.own["texts"]
        return OwnErrors(
            *(
                getattr(self.measured, entry.name)
                * max(1.0, getattr(own, entry.name) / (getattr(texts, entry.name) or 1.0))
                for entry in fields(OwnErrors)
            )
        )

    def errors(self, name: str, batch: Batch, model: BundleModel | None = None, cached: bool = False) -> OutputErrors:
        """The bundle's errors on a batch of the workload, by its name."""
        found = bundle_outputs(model or self.model, batch, cached)
        return compare_outputs(found, self.reference.outputs[name], batch, self.pad)

    @property
    def emulated(self) -> bool:
        """Whether the target under test itself rounds every tensor to the compute dtype on the CPU."""
        return self.row.compute in find_backend(self.target).emulates

    @cached_property
    def buffered_logits(self) -> np.ndarray | None:
        """Logits of texts in cached steps by the decoder that writes its cache in place; None where there is none."""
        from t5edge.runtime.onnxruntime.buffered import GRAPH, BufferedModel

        if not find_backend(self.target).writes_cache_in_place or GRAPH not in self.manifest.ports:
            return None
        model, batch = open_model(self.folder, self.manifest, self.target), self.workload.texts
        if not isinstance(model.step_model, BufferedModel):
            return None
        return model.logits(batch.input_ids, batch.attention_mask, batch.decoder_input_ids)

    @cached_property
    def rounded(self) -> BundleModel:
        """The bundle on the CPU with every tensor rounded to its compute dtype."""
        from t5edge.runtime.onnxruntime.cpu import session_options
        from t5edge.runtime.onnxruntime.emulation import open_rounded

        return BundleModel(self.folder, self.manifest, open_rounded(self.folder, self.manifest, session_options()))


def bundle_outputs(model: BundleModel, batch: Batch, cached: bool) -> Outputs:
    """A bundle's outputs, float32; logits in cached steps of one token, or all at once."""
    encoded = dict(model.step_model.hidden_and_cross(batch.input_ids, batch.attention_mask))
    hidden = encoded.pop("last_hidden_state")
    logits = (model.logits if cached else model.logits_uncached)(
        batch.input_ids, batch.attention_mask, batch.decoder_input_ids
    )
    cross = {name: array.astype(np.float32) for name, array in encoded.items()}
    return Outputs(hidden.astype(np.float32), cross, logits.copy())
