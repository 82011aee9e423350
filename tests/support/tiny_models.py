"""Tiny models that stand for the family: every distinct structure of the table, with its odd ratios kept.

Square toys hide bugs, so no tiny model has heads x d_kv = d_model, equal depths, or a vocabulary that is a power
of two.

    save_tiny_model(tiny_models()[0], folder, seed=0)                                   as transformers 5 writes it
    save_tiny_model(tiny_models()[0], folder, seed=0, layout="transformers4", bin=True) as old hub repositories hold it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.checkpoint.random_weights import RandomStore
from t5edge.exporter.family.config import architecture_from_config, config_from_architecture
from t5edge.exporter.family.variants import Variant

if TYPE_CHECKING:
    import torch

Layout = Literal["transformers4", "transformers5"]
SHARDS = 3


@dataclass(frozen=True)
class TinyModel:
    """A small model of a family; ``config`` is an honest raw config.json (tied exactly if it says so)."""

    name: str
    family: str
    config: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        return architecture_from_config(self.config)


class Structure(NamedTuple):
    """What makes graphs differ beyond sizes and depth: the nodes, the logit scale, the attention kernel."""

    activation: str
    gated: bool
    tied: bool
    scale_logits: bool
    per_layer_bias: bool
    d_kv: int


def structure(architecture: Architecture) -> Structure:
    """The key under which architectures share a tiny model."""
    return Structure(*(getattr(architecture, field) for field in Structure._fields))


def group_by_structure(rows: Iterable[Variant]) -> dict[Structure, list[Variant]]:
    """The rows under their structure, in order of first appearance."""
    groups: dict[Structure, list[Variant]] = {}
    for row in rows:
        groups.setdefault(structure(row.architecture), []).append(row)
    return groups


@dataclass(frozen=True)
class _Shape:
    """Sizes of one tiny model, and what its family fixes."""

    name: str
    family: str
    d_model: int
    num_heads: int
    d_kv: int
    d_ff: int
    encoder_layers: int
    decoder_layers: int
    vocab_size: int
    activation: str = "gelu_tanh"
    gated: bool = True
    tied: bool = False
    model_type: str = "t5"


RELU: Any = {"activation": "relu", "gated": False, "tied": True}

# fmt: off
SHAPES = (
    #                                     d_model heads d_kv d_ff el dl vocabulary
    _Shape("t5-tiny", "t5-v1.0",           72, 3,  64, 104, 3, 2, 131, **RELU),
    _Shape("t5-11b-tiny", "t5-v1.0",            40, 5, 128, 296, 2, 3, 99, **RELU),  # inner = 16 x d_model
    _Shape("efficient-kv16-tiny", "t5-efficient", 72, 3, 16, 88, 2, 4, 101, **RELU),  # inner < d_model
    _Shape("efficient-kv32-tiny", "t5-efficient", 56, 3, 32, 120, 5, 1, 107, **RELU),
    _Shape("efficient-kv256-tiny", "t5-efficient", 48, 1, 256, 80, 1, 2, 97, **RELU),
    _Shape("v1.1-tiny", "t5-v1.1",             104, 2,  64,  88, 3, 2, 149),
    _Shape("ul2-tiny", "ul2",                   96, 2, 256, 136, 2, 3, 113, activation="silu"),
    _Shape("mt5-tiny", "mt5",                  152, 2,  64, 112, 2, 3, 509, model_type="mt5"),
    _Shape("umt5-tiny", "umt5",                104, 2,  64,  88, 3, 2, 523, model_type="umt5"),  # blocks as v1.1's
    _Shape("byt5-tiny", "byt5",                184, 2,  64, 216, 6, 2, 384),
)
# fmt: on


def tiny_models() -> tuple[TinyModel, ...]:
    """All tiny_models; together they have every structure of the table."""
    return tuple(TinyModel(shape.name, shape.family, _config(shape)) for shape in SHAPES)


def find_tiny_model(name: str) -> TinyModel:
    """The tiny model called ``name``."""
    return next(tiny for tiny in tiny_models() if tiny.name == name)


def _config(shape: _Shape) -> dict[str, Any]:
    per_layer_bias = shape.model_type == "umt5"
    architecture = Architecture(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        d_kv=shape.d_kv,
        d_ff=shape.d_ff,
        num_heads=shape.num_heads,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        activation=shape.activation,
        gated=shape.gated,
        tied=shape.tied,
        scale_logits=shape.tied,
        per_layer_bias=per_layer_bias,
    )
    return config_from_architecture(architecture, shape.model_type)


def save_tiny_model(
    tiny: TinyModel,
    folder: Path | str,
    seed: int,
    layout: Layout = "transformers5",
    *,
    sharded: bool = False,
    bin: bool = False,
) -> Path:
    """Write ``tiny`` with random weights as a checkpoint folder, and return the folder.

    ``transformers5`` claims tied embeddings whatever the truth; ``transformers4`` stores the embedding three
    times, a tied output layer as well, and the dead bias of cross-attention. ``bin`` writes ``torch.save``
    files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config_of_layout(tiny, layout)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = _state(tiny, seed, layout)
    shards = [dict(list(state.items())[part::SHARDS]) for part in range(SHARDS)] if sharded else [state]
    _save_shards(folder, shards, "bin" if bin else "safetensors")
    return folder


def _config_of_layout(tiny: TinyModel, layout: Layout) -> dict[str, Any]:
    """As that version writes it for this model; UMT5's published configs lack ``model_type``."""
    if layout == "transformers5":
        return {**tiny.config, "tie_word_embeddings": True, "transformers_version": "5.0.0"}
    dropped = {"scale_decoder_outputs"} | ({"model_type"} if tiny.config["model_type"] == "umt5" else set())
    kept = {key: value for key, value in tiny.config.items() if key not in dropped}
    return {**kept, "transformers_version": "4.40.0"}


def _state(tiny: TinyModel, seed: int, layout: Layout) -> dict[str, torch.Tensor]:
    """Float32 weights under the names of that layout."""
    import torch

    architecture = tiny.architecture
    store = RandomStore(architecture, seed)
    state = {name: store.read(name) for name in store.tensors}
    if layout == "transformers4":
        copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
        for name in copies + (["lm_head.weight"] if architecture.tied else []):
            state[name] = state["shared.weight"].clone()
        dead = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        state[dead] = torch.full((architecture.num_buckets, architecture.num_heads), 1e4)
    return state


def _save_shards(folder: Path, shards: list[dict[str, torch.Tensor]], suffix: str) -> None:
    import torch
    from safetensors.torch import save_file

    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map: dict[str, str] = {}
    for name, shard in zip(_shard_names(stem, suffix, len(shards)), shards, strict=True):
        weight_map |= dict.fromkeys(shard, name)
        if suffix == "safetensors":
            save_file(shard, folder / name, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / name)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shard_names(stem: str, suffix: str, count: int) -> Iterator[str]:
    if count == 1:
        yield f"{stem}.{suffix}"
        return
    for part in range(1, count + 1):
        yield f"{stem}-{part:05d}-of-{count:05d}.{suffix}"
