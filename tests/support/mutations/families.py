"""The models whose bundles are mutated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.shared import once
from support.tiny_models import find_tiny_model, save_tiny_model
from support.traces import shared_traces
from t5edge.pipeline import export


@dataclass(frozen=True)
class Family:
    """``variant`` as the export takes it, or ``tiny``: a tiny model that is written first."""

    variant: str = ""
    tiny: str = ""
    random_weights: int | None = None


FAMILIES = {
    "t5-demo": Family("t5-demo"),
    "umt5": Family(tiny="umt5-tiny"),
    "t5-v1.0": Family(tiny="t5-tiny"),
    "t5-base": Family("google-t5/t5-base", random_weights=0),
}
"""Trained; a bias in each layer and a gate; ReLU and tied; 223 million random weights (on request)."""
SMALL = ("t5-demo", "umt5", "t5-v1.0")
PRECISIONS = ("fp32", "fp16", "int8", "int4-weight")


def bundle_of(family: str, precision: str, root: Path) -> Path:
    """The family's sound bundle, made on first use in ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    facts, variant = FAMILIES[family], FAMILIES[family].variant
    if facts.tiny:
        saved = once(root / facts.tiny, lambda path: save_tiny_model(find_tiny_model(facts.tiny), path, seed=0))
        variant = str(saved)

    def make(out: Path) -> None:
        (root / "traces").mkdir(exist_ok=True)
        with shared_traces(root / "traces"):
            settings = {"target": ("onnxruntime",), "random_weights": facts.random_weights, "no_verify": True}
            export(variant, precision, out=out, **settings)

    return once(root / f"{family}-{precision}", make)
