"""PyTorch's answers, each asked for once in a process: the same weights give the same numbers for the same inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.texts import Batch
from t5edge.exporter.reference.whole import WholeReference
from t5edge.runtime.generation.step import Tokens

OUTPUTS: dict[str, Outputs] = {}
TOKENS: dict[str, Tokens] = {}
PLAIN = (int, float, bool)


@contextmanager
def remembered_reference() -> Iterator[None]:
    """``WholeReference`` runs the model on what it has not run these very weights on; its arrays are read-only."""
    run, generate = WholeReference._outputs, WholeReference._generate

    def outputs(self: WholeReference, batch: Batch, with_cross: bool, prefix: int) -> Outputs:
        key = _key(self, batch.input_ids, batch.attention_mask, batch.decoder_input_ids, with_cross, prefix)
        if key not in OUTPUTS:
            OUTPUTS[key] = found = run(self, batch, with_cross, prefix)
            for array in (found.hidden, found.logits, *found.cross.values()):
                array.flags.writeable = False
        return OUTPUTS[key]

    def tokens(self: WholeReference, ids: Tokens, mask: Tokens, prefix: int, settings: Mapping[str, Any]) -> Tokens:
        if not all(isinstance(value, PLAIN) for value in settings.values()):  # noise, which differs by its seed
            return generate(self, ids, mask, prefix, settings)
        key = _key(self, ids, mask, prefix, sorted(settings.items()))
        if key not in TOKENS:
            TOKENS[key] = generate(self, ids, mask, prefix, settings)
        return TOKENS[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WholeReference, "_outputs", outputs)
        patch.setattr(WholeReference, "_generate", tokens)
        yield


def _key(reference: WholeReference, *asked: Any) -> str:
    """Of every weight as it is now, the facts of the model, and what is asked."""
    digest = hashlib.sha256(repr((reference.weights.architecture, reference.weights.generation_config)).encode())
    for name, weight in reference.model.state_dict().items():
        digest.update(f"{name}{weight.dtype}{tuple(weight.shape)}".encode())
        digest.update(weight.float().numpy().tobytes())
    for value in asked:
        digest.update(
            f"{value.shape}{value.dtype}".encode() + value.tobytes()
            if isinstance(value, np.ndarray)
            else repr(value).encode()
        )
    return digest.hexdigest()
