"""Sentence-t5-like models with random weights, made and saved by sentence-transformers itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from support.encoders import GATED, encoder_model
from support.shared import once
from t5edge import pipeline
from t5edge.exporter.checkpoint.open import open_checkpoint
from t5edge.exporter.family.variants import DEMO_FOLDER

TEXTS = (
    "spell 1984",
    "a",
    "Add 1 and 2, and then 3",
    "read one thousand, nine hundred and eighty-four, then spell it again, and again",
)
MAX_LENGTH = 20
"""Tokens; the last of ``TEXTS`` is longer."""
Modules = Callable[[int], Sequence[Any]]
"""The modules behind the pooling, of the size of a hidden state."""


Sentences = Callable[..., Path]
"""Of a tiny model's name (and a precision) a sentence-t5-like model (its unverified bundle)."""


def sentence_models(root: Path) -> Sentences:
    """What the fixture ``sentences`` gives: everything is made once, in ``root``."""

    def made(name: str = GATED, precision: str | None = None) -> Path:
        folder = once(root / name, lambda path: save_sentence_model(path, name))
        if precision is None:
            return folder
        return once(root / f"{name}-{precision}", lambda out: export(folder, precision, out))

    return made


def export(source: Path, precision: str, out: Path, **options: Any) -> Path:
    """Unverified, for ONNX Runtime, unless ``options`` say otherwise."""
    settings = {"no_verify": True, "target": ("onnxruntime",), **options}
    return pipeline.export(str(source), precision, out=out, **settings).folder


def dense(size: int, out: int, activation: str = "Identity", bias: bool = False) -> Any:
    """A ``Dense`` with seeded weights."""
    from sentence_transformers.sentence_transformer.modules import Dense

    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(out, size, generator=generator) * size**-0.5
    own = torch.randn(out, generator=generator) if bias else None
    return Dense(size, out, bias, getattr(torch.nn, activation)(), init_weight=weight, init_bias=own)


def sentence_t5(size: int) -> Sequence[Any]:
    """As sentence-t5 and gtr have it."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    return [dense(size, 48), Normalize()]


def save_sentence_model(
    folder: Path, name: str, pooling: Any = "mean", modules: Modules = sentence_t5, **settings: Any
) -> Path:
    """A tiny encoder with t5-demo's tokenizer; ``settings``: prompts, default_prompt_name, include_prompt."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    source = folder.with_name(f"{folder.name}-encoder")
    encoder = encoder_model(name, vocab_size=open_checkpoint("t5-demo").architecture.vocab_size)
    encoder.save_pretrained(source)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_FOLDER / file, source)
    size = encoder.config.d_model
    pooled = Pooling(size, pooling, include_prompt=settings.pop("include_prompt", True))
    transformer = Transformer(str(source), max_seq_length=MAX_LENGTH)
    width = pooled.pooling_output_dimension
    model = SentenceTransformer(modules=[transformer, pooled, *modules(width)], device="cpu", **settings)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def reference(folder: Path) -> Any:
    """The ``SentenceTransformer`` in ``folder``, float32."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")
