"""PyTorch, which every bundle is measured against: in float32, and at the bundle's compute dtype for scale.

An error of a 16-bit bundle counts in units of the error that PyTorch makes at that dtype on the same batch. PyTorch
has two ways to run such a model, all in that dtype or with the FFN output projections in float32 (transformers' own
habit for float16); the smaller error of the two is the unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from t5edge.errors import UserError
from t5edge.exporter.reference.protocol import MakeReference, Outputs, Reference
from t5edge.exporter.reference.texts import target_mask
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.hidden import HiddenErrors, compare_hidden
from t5edge.parity.limits import OwnErrors, ceiling
from t5edge.parity.measures import LogitErrors, compare_logits, pool, relative_error

if TYPE_CHECKING:
    from t5edge.exporter.checkpoint.open import Checkpoint
    from t5edge.exporter.reference.texts import Batch

WITH_CROSS = ("texts",)
"""Batches whose cross keys and values are compared: those of all would be as large as the model."""


@dataclass(frozen=True)
class OutputErrors:
    """Errors of one batch against the reference, padding left out; ``cross`` is the worst tensor's relative L2 error.

    An encoder alone has no ``cross``, and ``logits`` only of a head that classifies tokens.
    """

    states: HiddenErrors
    cross: float
    worst_cross: str
    logits: LogitErrors

    @property
    def hidden(self) -> float:
        """Relative L2 error of the encoder's output."""
        return self.states.relative

    def own(self) -> OwnErrors:
        found, some = self.logits, self.logits.positions > 0
        return OwnErrors(
            hidden=self.hidden,
            cross=self.cross,
            logits=found.relative,
            position=found.worst_position if some else 0.0,
            log_probs=found.log_prob_relative,
            kl=float(found.kl.mean()) if some else 0.0,
            pooled=self.states.worst("pooled"),
            token=self.states.worst("token"),
            embedding=self.states.worst("embedding"),
        )


def compare_outputs(value: Outputs, reference: Outputs, batch: Batch, pad_token_id: int) -> OutputErrors:
    """Errors of ``value``; padded positions of source and target do not count, nor cross tensors without reference."""
    source = batch.attention_mask.astype(bool)
    target = target_mask(batch.decoder_input_ids, pad_token_id)
    cross = {
        name: relative_error(value.cross[name].swapaxes(1, 2)[source], expected.swapaxes(1, 2)[source])
        for name, expected in reference.cross.items()
    }
    worst = max(cross, key=lambda name: cross[name], default="")
    if reference.labels is not None:
        seen = source if reference.labels.ndim == 3 else np.ones(len(source), bool)
        logits = compare_logits(np.asarray(value.labels)[seen], reference.labels[seen])
    elif reference.logits.size > 0:
        logits = compare_logits(value.logits[target], reference.logits[target])
    else:
        logits = pool(LogitErrors, [])
    return OutputErrors(compare_hidden(value, reference, source), cross.get(worst, 0.0), worst, logits)


SMALL = 20e6
"""Parameters below which one thread is as fast as many."""


@contextmanager
def threads_for(parameters: int) -> Iterator[None]:
    """One PyTorch thread for a small model: on a busy machine, threads that wait for each other take far longer."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if parameters < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Measured:
    """Float32 PyTorch on every batch; ``own`` errors at a 16-bit dtype are empty where none was asked for."""

    model: Reference
    outputs: Mapping[str, Outputs]
    own: Mapping[str, OwnErrors]

    def own_of(self, *names: str) -> OwnErrors | None:
        """The largest own error over some batches: one short batch may be lucky."""
        known = [self.own[name] for name in names if name in self.own]
        if not known:
            return None
        return OwnErrors(*(max(getattr(errors, entry.name) for errors in known) for entry in fields(OwnErrors)))


def measure_reference(
    checkpoint: Checkpoint,
    narrow: str | None,
    batches: Mapping[str, Batch],
    on_batch: Callable[[], None],
    make: MakeReference = WholeReference,
) -> Measured:
    """Run PyTorch on ``batches``: float32, then both ways of its own at the dtype ``narrow``, if any.

    One 16-bit model is in memory at a time. ``on_batch`` is called ``passes(narrow)`` times for each batch.

    Raises:
        UserError: float32 PyTorch itself gives NaN or infinity.
    """
    import torch

    exact = make(checkpoint, torch.float32)
    outputs: dict[str, Outputs] = {}
    for name, found in exact.outputs(batches, WITH_CROSS):
        if not (np.isfinite(found.hidden).all() and np.isfinite(found.logits).all()):
            raise UserError(
                f"'{checkpoint.source}' gives NaN or infinity in float32 PyTorch on plain sentences; "
                "the checkpoint is broken, download or train it again."
            )
        outputs[name] = found
        on_batch()
    own: dict[str, OwnErrors] = {}
    for keep in (False, True) if narrow is not None else ():
        assert narrow is not None
        model = make(checkpoint, getattr(torch, narrow), keep_wo_float32=keep)
        for name, found in model.outputs(batches, WITH_CROSS):
            errors = compare_outputs(found, outputs[name], batches[name], checkpoint.architecture.pad_token_id)
            own[name] = _smaller(errors.own(), own.get(name), ceiling(narrow))
            on_batch()
    return Measured(exact, outputs, own)


def passes(narrow: str | None) -> int:
    """How often ``measure_reference`` runs each batch."""
    return 1 if narrow is None else 3


def _smaller(found: OwnErrors, known: OwnErrors | None, most: float) -> OwnErrors:
    """Field by field the smaller error, none above ``most``; the KL divergence goes with its square."""
    values = {}
    for entry in fields(OwnErrors):
        bounds = [getattr(errors, entry.name) for errors in (found, known) if errors is not None]
        values[entry.name] = min(*bounds, most**2 if entry.name == "kl" else most)
    return OwnErrors(**values)
