"""What the mutations of a bundle have in common is computed once.

PyTorch's answers are remembered by all that they depend on: the checkpoint, or the bytes of the stored weights and
which of them are its two tables; and the batch. So is how far a stored tensor lies from the checkpoint's, by its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from typing import Any

import pytest

from support.mutations.draft import WEIGHTS
from t5edge.bundle.files import sha256_of
from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.texts import Batch
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity import ladder
from t5edge.parity.exact import graphs, weights
from t5edge.parity.exact.keys import StackKey, StoredKey
from t5edge.parity.exact.reference import tables
from t5edge.parity.exact.stored import StoredWeights

Function = Callable[..., Any]


@contextmanager
def remembered_reference() -> Iterator[None]:
    """While this is open, nothing is computed twice; nor are wrong parts looked for where a check fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "locate", lambda *_: [])
        patch.setattr(ladder, "measure_reference", _measured_once(ladder.measure_reference))
        patch.setattr(weights, "compare_matrix", _compared_once(weights.compare_matrix))
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
    def ask(self: WholeReference, batch: Batch, with_cross: bool, prefix: Any) -> Outputs:
        known = self.__dict__.setdefault("known_outputs", {})
        key = (_key(batch), with_cross)  # a prefix is one of the ids
        if key not in known:
            known[key] = outputs(self, batch, with_cross, prefix)
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


def _compared_once(compare: Function) -> Function:
    known: dict[Any, Any] = {}

    def ask(stored: StoredWeights, matrix: str, key: StoredKey) -> Any:
        parts = [matrix, matrix.replace(".values(", ".scales(", 1)]
        parts += [key.base.rows, key.base.columns] if isinstance(key.base, StackKey) else []
        bytes_of = {part: _digest(stored._file.get_tensor(part)) for part in parts if part in stored.names}
        about = (stored.checkpoint.content_key(), tuple(bytes_of.items()))
        if about not in known:
            before = len(stored.problems)
            known[about] = compare(stored, matrix, key), stored.problems[before:]
        else:
            stored.problems += known[about][1]
        return known[about][0]

    return ask


def _digest(tensor: Any) -> tuple[Any, ...]:
    import torch

    return str(tensor.dtype), tuple(tensor.shape), sha256(tensor.flatten().view(torch.uint8).numpy()).digest()


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
