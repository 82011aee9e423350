"""PyTorch answers each question once for all mutations of a bundle.

Of a bundle itself nothing is remembered. PyTorch's answers are, by all that they depend on: the checkpoint, or the
bytes of the stored weights and which of them are its two tables; and the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import pytest

from support.mutations.draft import WEIGHTS
from t5edge.bundle.files import sha256_of
from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.texts import Batch
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity import ladder
from t5edge.parity.exact import graphs
from t5edge.parity.exact.reference import tables
from t5edge.parity.exact.stored import StoredWeights

Function = Callable[..., Any]


@contextmanager
def remembered_reference() -> Iterator[None]:
    """While this is open, no question is asked twice; nor are wrong parts looked for where a check fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "locate", lambda *_: [])
        patch.setattr(ladder, "measure_reference", _measured_once(ladder.measure_reference))
        patch.setattr(graphs, "stored_reference", _built_when_asked(graphs.stored_reference))
        patch.setattr(WholeReference, "_outputs", _outputs_once(WholeReference._outputs))
        patch.setattr(WholeReference, "generate", _generated_once(WholeReference.generate))
        yield


def _measured_once(measure: Function) -> Function:
    """``measure_reference``; what is known of more batches than are asked about answers too."""
    known: dict[Any, tuple[dict[str, Any], Any]] = {}

    def ask(checkpoint: Any, narrow: Any, batches: Mapping[str, Batch], on_batch: Any, *rest: Any) -> Any:
        about = (checkpoint.content_key(), narrow, rest)
        asked = {name: _key(batch) for name, batch in batches.items()}
        answered, found = known.get(about, ({}, None))
        if found is None or not asked.items() <= answered.items():
            found = measure(checkpoint, narrow, batches, on_batch, *rest)
            if answered.items() <= asked.items():
                known[about] = asked, found
        return found

    return ask


def _outputs_once(outputs: Function) -> Function:
    def ask(self: WholeReference, batch: Batch, with_cross: bool) -> Outputs:
        known = self.__dict__.setdefault("known_outputs", {})
        key = (_key(batch), with_cross)
        if key not in known:
            known[key] = outputs(self, batch, with_cross)
        found: Outputs = known[key]
        return found

    return ask


def _generated_once(generate: Function) -> Function:
    def ask(self: WholeReference, ids: Any, mask: Any, **settings: Any) -> Any:
        if "logits_processor" in settings:
            return generate(self, ids, mask, **settings)
        known = self.__dict__.setdefault("known_answers", {})
        key = (ids.shape, ids.tobytes(), mask.tobytes(), repr(sorted(settings.items())))
        if key not in known:
            known[key] = generate(self, ids, mask, **settings)
        return known[key].copy()

    return ask


def _built_when_asked(build: Function) -> Function:
    """``stored_reference``: built for new weights or a new question only, and not kept."""
    known: dict[Any, dict[Any, Outputs]] = {}

    def ask(stored: StoredWeights) -> StoredReference:
        named = tables(stored.folder, stored.architecture.stacks[-1])
        about = (stored.checkpoint.content_key(), sha256_of(stored.folder / WEIGHTS), named)
        return StoredReference(build, stored, known.setdefault(about, {}))

    return ask


class StoredReference:
    """What ``graphs`` asks of PyTorch with the stored weights; ``known`` are the answers there are already."""

    def __init__(self, build: Function, stored: StoredWeights, known: dict[Any, Outputs]) -> None:
        self._build, self._stored, self._known = build, stored, known

    @cached_property
    def _model(self) -> WholeReference:
        model: WholeReference = self._build(self._stored)
        return model

    def outputs(self, batches: Mapping[str, Batch], cross: Container[str] = ()) -> Iterator[tuple[str, Outputs]]:
        """See ``Reference.outputs``."""
        for name, batch in batches.items():
            key = (_key(batch), name in cross)
            if key not in self._known:
                ((_, self._known[key]),) = self._model.outputs({name: batch}, cross)
            yield name, self._known[key]


def _key(batch: Batch) -> tuple[Any, ...]:
    arrays = (batch.input_ids, batch.attention_mask, batch.decoder_input_ids)
    return tuple((array.shape, array.tobytes()) for array in arrays)
