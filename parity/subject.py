"""What a check works on: the opened bundle, PyTorch's answers, the batches, the traced blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from t5edge.bundle.architecture import Stack
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import EMBEDDING, LABEL_LOGITS, SPAN_LOGITS, Limits
from t5edge.bundle.precision import Precision, own_row
from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.judged_texts import Judging
from t5edge.parity.limits import MOST_AMPLIFIED, OwnErrors, quantized_unit
from t5edge.parity.parts import InParts
from t5edge.parity.reference import Measured, OutputErrors, compare_outputs
from t5edge.parity.workload import Workload
from t5edge.runtime.backend import find_backend
from t5edge.runtime.model import BundleModel, open_model
from t5edge.runtime.onnxruntime.sessions import session_entries, session_options

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch
    from t5edge.kernels.block import Block, BlockKind

MAPPED = {
    "session.disable_prepacking": "1",
    "optimization.disable_specified_optimizers": "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer",
}
"""Configuration of ONNX Runtime with which float weights stay in the file, mapped, and are widened as they are used.

Otherwise it copies each into the layout of its kernels, and float16 weights into float32."""


@dataclass(frozen=True)
class Opener:
    """A bundle as the checks open it. ``mapped``: float weights stay on disk, for models larger than the memory."""

    folder: Path
    manifest: Manifest
    target: str
    mapped: bool = False
    judging: Judging = field(default_factory=Judging)

    @property
    def limits(self) -> Limits:
        return self.manifest.limits

    @property
    def precision(self) -> Precision:
        """The program's row of the bundle's precision, for its limits are not the bundle's to state."""
        return own_row(self.manifest.precision)

    def rescale_k(self, stack: Stack) -> int:
        """The residual stream of a stack is divided by 2 to this power."""
        rescale = self.manifest.rescale
        return (rescale.encoder if stack == "encoder" else rescale.decoder).k

    def model(self, buffers: bool = False) -> BundleModel:
        """The bundle on its target; ``buffers``: with the decoder that writes its cache in place, where there is one.

        Raises:
            UserError: the target cannot run it here.
        """
        backend = find_backend(self.target)
        settings = {"buffers": buffers} if backend.writes_cache_in_place else {}
        model = open_model(self.folder, self._manifest(), self.target, **settings)
        largest = backend.max_batch(self.manifest)
        if largest is not None:  # the workload does not know it
            model.step_model = InParts(model.step_model, largest)
        return model

    def rounded(self) -> BundleModel:
        """The bundle on the CPU with every tensor rounded to its compute dtype."""
        from t5edge.runtime.onnxruntime.emulation import open_rounded

        manifest = self._manifest()
        options = session_options(None, session_entries(manifest, "encoder"))
        return BundleModel(self.folder, manifest, open_rounded(self.folder, manifest, options))

    def _manifest(self) -> Manifest:
        """The manifest, with the sessions' configuration as ``mapped`` asks for; integers are packed in any case."""
        if not self.mapped or self.precision.quantized:
            return self.manifest
        entries = {graph: session_entries(self.manifest, graph) for graph in self.manifest.architecture.stacks}
        return replace(self.manifest, session={graph: {**known, **MAPPED} for graph, known in entries.items()})


@dataclass
class Subject:
    """One bundle under test. ``blocks`` are the fused blocks it was assembled from."""

    opener: Opener
    checkpoint: Checkpoint
    precision: Precision
    model: BundleModel
    workload: Workload
    reference: Measured
    blocks: Mapping[BlockKind, Block]

    @property
    def pad(self) -> int:
        return self.checkpoint.architecture.pad_token_id

    @property
    def encoder_alone(self) -> bool:
        return self.checkpoint.architecture.encoder_alone

    @property
    def longest(self) -> int:
        """New tokens that fit behind the start token, and behind a learnt prefix."""
        return max(1, self.opener.limits.max_target_length - self.checkpoint.architecture.prefix_length - 1)

    @property
    def whole(self) -> WholeReference | None:
        """PyTorch token by token; None where only one block of it is in memory at a time."""
        return self.reference.model if isinstance(self.reference.model, WholeReference) else None

    @property
    def generation(self) -> Mapping[str, Any]:
        """The bundle's own settings of ``generate``."""
        return self.model.manifest.generation

    def unit(self, *names: str) -> OwnErrors | None:
        """What errors on some batches count in; None where the precision's bounds stand as they are.

        PyTorch's own error; if quantized, the precision's limits on texts, amplified as PyTorch's error is there.
        """
        own, limits = self.reference.own_of(*names), self.precision.quality
        if own is None or limits is None:
            return own
        texts, granted = self.reference.own["texts"], quantized_unit(limits)
        ratios = {
            entry.name: getattr(own, entry.name) / (getattr(texts, entry.name) or 1.0) for entry in fields(OwnErrors)
        }
        grown = {name: min(max(1.0, ratio), MOST_AMPLIFIED) for name, ratio in ratios.items()}
        return OwnErrors(**{name: getattr(granted, name) * ratio for name, ratio in grown.items()})

    @property
    def repeated(self) -> OwnErrors | None:
        """What the bundle's errors against itself count in: cached against uncached, a row alone or among others."""
        limits = self.precision.quality
        return self.unit("texts") if limits is None else OwnErrors(*[limits.repeated] * len(fields(OwnErrors)))

    def errors(self, name: str, batch: Batch, model: BundleModel | None = None, cached: bool = False) -> OutputErrors:
        """The bundle's errors on a batch of the workload, by its name."""
        found = bundle_outputs(model or self.model, batch, cached)
        return compare_outputs(found, self.reference.outputs[name], batch, self.pad)

    @property
    def emulated(self) -> bool:
        """Whether the target under test itself rounds every tensor to the compute dtype on the CPU."""
        return self.precision.compute in find_backend(self.opener.target).emulates

    @cached_property
    def buffered(self) -> BundleModel | None:
        """The bundle with the decoder that writes its cache in place; None where there is none."""
        from t5edge.runtime.onnxruntime.buffered import GRAPH, BufferedModel
        from t5edge.runtime.onnxruntime.captured import CapturedModel

        backend = find_backend(self.opener.target)
        if not backend.writes_cache_in_place or GRAPH not in self.opener.manifest.ports:
            return None
        model = self.opener.model(buffers=True)
        return model if isinstance(model.step_model, BufferedModel | CapturedModel) else None

    @cached_property
    def buffered_logits(self) -> np.ndarray | None:
        """Logits of texts in cached steps by ``buffered``."""
        batch = self.workload.texts
        arrays = (batch.input_ids, batch.attention_mask, batch.decoder_input_ids)
        return None if self.buffered is None else self.buffered.logits(*arrays)

    @cached_property
    def rounded(self) -> BundleModel:
        """The bundle on the CPU with every tensor rounded to its compute dtype."""
        return self.opener.rounded()


def label_logits(encoded: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What a head gives, as ``exporter.reference.heads.head_logits`` has it; None where there is no head."""
    if SPAN_LOGITS[0] in encoded:
        return np.stack([encoded[name] for name in SPAN_LOGITS], axis=-1)
    return encoded.get(LABEL_LOGITS)


def bundle_outputs(model: BundleModel, batch: Batch, cached: bool) -> Outputs:
    """A bundle's outputs, float32; logits in cached steps of one token, or all at once."""
    encoded = dict(model.step_model.hidden_and_cross(batch.input_ids, batch.attention_mask))
    hidden = encoded.pop("last_hidden_state")
    if model.architecture.encoder_alone:
        none = np.zeros((len(hidden), 0, 0), np.float32)
        return Outputs(hidden.astype(np.float32), {}, none, encoded.get(EMBEDDING), label_logits(encoded))
    logits = (model.logits if cached else model.logits_uncached)(
        batch.input_ids, batch.attention_mask, batch.decoder_input_ids
    )
    cross = {name: array.astype(np.float32) for name, array in encoded.items()}
    return Outputs(hidden.astype(np.float32), cross, logits.copy())
