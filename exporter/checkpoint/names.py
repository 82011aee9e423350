"""From the names a checkpoint uses to the canonical ones, with every problem reported at once.

Exporters of the last years disagree about T5's shared tensors: the embedding may be stored once or three
times, the tied output layer may be there or not, and old decoders carry a position bias for cross-attention
that nothing reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from t5edge.bundle.architecture import Architecture
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.stores import FLOATS, TensorStore, summary
from t5edge.exporter.family.config import architecture_from_config, head_of, is_encoder_alone

SHARED = "shared.weight"
OUTPUT_LAYER = "lm_head.weight"
EMBEDDINGS = (SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
DEAD = re.compile(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")
"""T5: written by old conversions, read by nothing."""
PART_OF_MODEL = re.compile(r"(encoder|decoder)\.|lm_head\.|shared\.")


@dataclass(frozen=True)
class NamedTensors:
    """Canonical name -> stored name, the facts they imply, and tensors that are not part of the model."""

    stored_names: dict[str, str]
    architecture: Architecture
    ignored: list[str]


def name_tensors(config: Mapping[str, Any], store: TensorStore, where: str) -> NamedTensors:
    """Match the stored tensors with what the config promises.

    Raises:
        UserError: one line with every missing, misshaped, contradicting, unknown and non-float tensor.
    """
    names = set(store.tensors)
    embedding = _embedding(config, names)
    separate_output = (
        OUTPUT_LAYER in names
        and embedding not in (None, OUTPUT_LAYER)
        and not _same_values(store, OUTPUT_LAYER, str(embedding))
    )
    separate = names if separate_output else names - {OUTPUT_LAYER}
    architecture = architecture_from_config(config, separate)
    if not separate_output:
        architecture = replace(architecture, tied=True)
    stored = {name: name for name in architecture.tensor_shapes()}
    if embedding is not None:
        stored[SHARED] = embedding
    unknown = sorted(names - set(stored.values()) - {*EMBEDDINGS, OUTPUT_LAYER})
    unknown = [name for name in unknown if not DEAD.fullmatch(name)]
    problems = [
        *_output_layer_problems(config, names, separate_output),
        *_missing(stored, names),
        *_misshaped(architecture, stored, store),
        *_contradicting_embeddings(embedding, names, store),
        *_unknown_layers(unknown),
        *_non_floats(stored, store),
    ]
    if problems:
        raise UserError(
            f"{where} does not fit its config.json: {'; '.join(problems)}. Check that both are of one model."
        )
    return NamedTensors(stored, architecture, [name for name in unknown if not PART_OF_MODEL.match(name)])


def _says_tied(config: Mapping[str, Any]) -> bool:
    """T5: tied unless the file says otherwise; transformers 5 always writes true."""
    return config.get("tie_word_embeddings", True) is not False


def _embedding(config: Mapping[str, Any], names: set[str]) -> str | None:
    """The stored name of the embedding table; a tied output layer may be its only copy."""
    candidates = (*EMBEDDINGS, OUTPUT_LAYER) if _says_tied(config) else EMBEDDINGS
    return next((name for name in candidates if name in names), None)


def _output_layer_problems(config: Mapping[str, Any], names: set[str], separate_output: bool) -> list[str]:
    """An output layer is never invented. transformers 5 says ``scale_decoder_outputs: false`` of an untied T5."""
    if is_encoder_alone(names) or head_of(names):
        return []
    untied = [key for key in ("tie_word_embeddings", "scale_decoder_outputs") if config.get(key) is False]
    if separate_output or OUTPUT_LAYER in names or not untied:
        return []
    return [f"{OUTPUT_LAYER} is missing while config.json says {untied[0]}: false (a model without its head?)"]


def _missing(stored: Mapping[str, str], names: set[str]) -> list[str]:
    missing = [name for name, stored_name in stored.items() if stored_name not in names]
    return [f"{len(missing)} missing: {summary(missing)}"] if missing else []


def _misshaped(architecture: Architecture, stored: Mapping[str, str], store: TensorStore) -> list[str]:
    wrong = []
    for name, expected in architecture.tensor_shapes().items():
        tensor = store.tensors.get(stored[name])
        if tensor is not None and tensor.shape != expected:
            wrong.append(f"{name} is {list(tensor.shape)} instead of {list(expected)}")
    return [f"{len(wrong)} of another shape: {summary(wrong)}"] if wrong else []


def _contradicting_embeddings(embedding: str | None, names: set[str], store: TensorStore) -> list[str]:
    copies = [name for name in EMBEDDINGS if name in names and name != embedding]
    differing = [name for name in copies if embedding and not _same_values(store, name, embedding)]
    return [f"{name} differs from {embedding}, but T5 has one table" for name in differing]


def _same_values(store: TensorStore, first: str, second: str) -> bool:
    """Whether two tables are equal; one that is not of floats is not read, as it is a problem of its own."""
    floats = all(store.tensors[name].dtype in FLOATS for name in (first, second))
    return not floats or store.same_values(first, second)


def _unknown_layers(unknown: list[str]) -> list[str]:
    layers = [name for name in unknown if PART_OF_MODEL.match(name)]
    return [f"{len(layers)} that config.json has no place for: {summary(layers)}"] if layers else []


def _non_floats(stored: Mapping[str, str], store: TensorStore) -> list[str]:
    found = [
        f"{name} is {store.tensors[stored_name].dtype}"
        for name, stored_name in stored.items()
        if stored_name in store.tensors and store.tensors[stored_name].dtype not in FLOATS
    ]
    return [f"{len(found)} not of a float type (quantized already?): {summary(found)}"] if found else []
