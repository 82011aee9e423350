"""The T5 family as rows: every published size.

    find_variant("flan-t5-base")                       google/flan-t5-base
    find_variant("t5-efficient-small-el8-dl2-ff1000")  no card, but a name of the grammar
    expand_patterns(["t5-efficient-tiny*", "byt5-*"])  rows for a sweep

The table serves planning, tests and random weights. A checkpoint's own config.json wins over it.
"""

from __future__ import annotations

import csv
import difflib
import fnmatch
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from t5edge.bundle.architecture import Architecture
from t5edge.errors import UserError
from t5edge.exporter.family.config import architecture_from_config, config_from_architecture
from t5edge.exporter.family.efficient_names import parse_efficient_name

DATA = Path(__file__).parents[1] / "data"
DEMO_NAME = "t5-demo"
DEMO_FOLDER = DATA / DEMO_NAME
CARD_TOLERANCE = 0.002
"""Relative distance up to which a card's parameter count and the row's agree; cards round to 10,000
parameters.
"""


@dataclass(frozen=True)
class Variant:
    """One row. ``name`` is the hub id; ``card_parameters`` what its card states, where it does (rounded)."""

    name: str
    family: str
    architecture: Architecture
    model_type: str = "t5"
    card_parameters: int | None = None
    note: str = ""

    @property
    def short_name(self) -> str:
        """The name without its organisation."""
        return self.name.rpartition("/")[2]

    @property
    def parameters(self) -> int:
        """Distinct parameters, counted from the row's sizes."""
        return self.architecture.parameters

    @property
    def contradicts_card(self) -> bool:
        """Whether name and card of this variant cannot both be right."""
        if self.card_parameters is None:
            return False
        return abs(self.parameters - self.card_parameters) > CARD_TOLERANCE * self.card_parameters

    def config(self) -> dict[str, Any]:
        """A raw ``config.json`` for this row."""
        return config_from_architecture(self.architecture, self.model_type)

    def as_dict(self) -> dict[str, Any]:
        facts = self.architecture
        return {
            "name": self.name,
            "family": self.family,
            "d_model": facts.d_model,
            "d_kv": facts.d_kv,
            "d_ff": facts.d_ff,
            "num_heads": facts.num_heads,
            "encoder_layers": facts.encoder_layers,
            "decoder_layers": facts.decoder_layers,
            "ffn": facts.ffn,
            "tied": facts.tied,
            "vocab_size": facts.vocab_size,
            "parameters": self.parameters,
            "card_parameters": self.card_parameters,
            "note": self.note,
        }


Sizes = tuple[int, int, int, int, int, int]
"""d_model, heads, d_kv, d_ff, encoder layers, decoder layers: the order of the papers' tables."""


@dataclass(frozen=True)
class Family:
    """Sizes that share everything else. ``pattern`` makes the hub id from the size's name."""

    name: str
    pattern: str
    sizes: dict[str, Sizes]
    activation: str = "gelu_tanh"
    gated: bool = True
    tied: bool = False
    per_layer_bias: bool = False
    vocab_size: int = 32128
    model_type: str = "t5"
    note: str = ""

    def architecture(self, sizes: Sizes) -> Architecture:
        d_model, num_heads, d_kv, d_ff, encoder_layers, decoder_layers = sizes
        return Architecture(
            vocab_size=self.vocab_size,
            d_model=d_model,
            d_kv=d_kv,
            d_ff=d_ff,
            num_heads=num_heads,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            activation=self.activation,
            gated=self.gated,
            tied=self.tied,
            scale_logits=self.tied,
            per_layer_bias=self.per_layer_bias,
        )

    def variants(self) -> Iterator[Variant]:
        for size, sizes in self.sizes.items():
            name = self.pattern.format(size)
            yield Variant(name, self.name, self.architecture(sizes), self.model_type, note=self.note)


V1_0: dict[str, Sizes] = {
    "small": (512, 8, 64, 2048, 6, 6),
    "base": (768, 12, 64, 3072, 12, 12),
    "large": (1024, 16, 64, 4096, 24, 24),
    "3b": (1024, 32, 128, 16384, 24, 24),
    "11b": (1024, 128, 128, 65536, 24, 24),
}
V1_1: dict[str, Sizes] = {
    "small": (512, 6, 64, 1024, 8, 8),
    "base": (768, 12, 64, 2048, 12, 12),
    "large": (1024, 16, 64, 2816, 24, 24),
    "xl": (2048, 32, 64, 5120, 24, 24),
    "xxl": (4096, 64, 64, 10240, 24, 24),
}
UMT5: dict[str, Sizes] = {size: V1_1[size] for size in ("small", "base", "xl", "xxl")}
BYT5: dict[str, Sizes] = {
    "small": (1472, 6, 64, 3584, 12, 4),
    "base": (1536, 12, 64, 3968, 18, 6),
    "large": (1536, 16, 64, 3840, 36, 12),
    "xl": (2560, 32, 64, 6720, 36, 12),
    "xxl": (4672, 64, 64, 12352, 36, 12),
}
UL2: dict[str, Sizes] = {"ul2": (4096, 16, 256, 16384, 32, 32)}
EFFICIENT: dict[str, Sizes] = {
    "tiny": (256, 4, 64, 1024, 4, 4),
    "mini": (384, 8, 64, 1536, 4, 4),
    "small": (512, 8, 64, 2048, 6, 6),
    "base": (768, 12, 64, 3072, 12, 12),
    "large": (1024, 16, 64, 4096, 24, 24),
    "xl": (1024, 32, 128, 16384, 24, 24),
    "xxl": (1024, 128, 128, 65536, 24, 24),
}
"""The cards' d_kv of 32 for tiny, mini and small fits no parameter count; 64 fits all of them."""

FAMILIES = (
    Family("t5-v1.0", "google-t5/t5-{}", V1_0, "relu", gated=False, tied=True),
    Family("t5-v1.1", "google/t5-v1_1-{}", V1_1),
    Family("t5-lm-adapt", "google/t5-{}-lm-adapt", V1_1),
    Family("t0", "bigscience/{}", {"T0pp": V1_1["xxl"]}),
    Family("flan-t5", "google/flan-t5-{}", V1_1),
    Family("ul2", "google/{}", UL2, "silu"),
    Family("flan-ul2", "google/flan-{}", UL2, "silu"),
    Family("mt5", "google/mt5-{}", V1_1, vocab_size=250112, model_type="mt5"),
    Family("umt5", "google/umt5-{}", UMT5, vocab_size=256384, model_type="umt5", per_layer_bias=True),
    Family("byt5", "google/byt5-{}", BYT5, vocab_size=384),
)
EFFICIENT_FAMILY = Family("t5-efficient", "google/t5-efficient-{}", EFFICIENT, "relu", gated=False, tied=True)


def efficient_architecture(name: str) -> Architecture | None:
    """The facts a T5-Efficient name spells; None for other names.

    Raises:
        UserError: a name of that form which the grammar refuses.
    """
    parsed = parse_efficient_name(name, EFFICIENT)
    if parsed is None:
        return None
    size, fields = parsed
    changes: dict[str, Any] = dict(fields)
    return replace(EFFICIENT_FAMILY.architecture(EFFICIENT[size]), **changes)


def _efficient_variant(name: str, architecture: Architecture, card_parameters: int | None = None) -> Variant:
    full_name = name if "/" in name else f"google/{name}"
    row = Variant(full_name.lower(), EFFICIENT_FAMILY.name, architecture, card_parameters=card_parameters)
    if card_parameters is None:
        return replace(row, note="no card known; sizes follow the name")
    if row.contradicts_card:
        counts = f"the card counts {card_parameters:,} parameters, the name gives {row.parameters:,}"
        return replace(row, note=f"{counts}; config.json decides")
    return row


def _efficient_variants() -> Iterator[Variant]:
    """Every published card, and the plain sizes without one."""
    with (DATA / "t5_efficient_cards.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cards = {row["model_id"]: round(float(row["parameters_millions"]) * 1e6) for row in rows}
    plain = [EFFICIENT_FAMILY.pattern.format(size) for size in EFFICIENT]
    for name in [*plain, *(name for name in cards if name not in plain)]:
        architecture = efficient_architecture(name)
        assert architecture is not None, name
        yield _efficient_variant(name, architecture, cards.get(name))


def _demo() -> Iterator[Variant]:
    """The bundled checkpoint, as its own config states it."""
    path = DEMO_FOLDER / "config.json"
    if path.is_file():
        architecture = architecture_from_config(json.loads(path.read_text(encoding="utf-8")))
        note = "trained, ships with the package: numbers to words and back"
        yield Variant(DEMO_NAME, DEMO_NAME, architecture, note=note)


@cache
def _rows() -> dict[str, Variant]:
    """Lower-case full name -> row."""
    published = [row for family in FAMILIES for row in family.variants()]
    return {row.name.lower(): row for row in (*_demo(), *published, *_efficient_variants())}


@cache
def _short_names() -> dict[str, Variant]:
    return {row.short_name.lower(): row for row in _rows().values()}


def variants() -> list[Variant]:
    """All rows: the bundled demo, then family by family."""
    return list(_rows().values())


def look_up_variant(name: str) -> Variant | None:
    """The row called ``name``, in full or without its organisation; None when there is none.

    Raises:
        UserError: a T5-Efficient name that the grammar refuses.
    """
    row = _rows().get(name.lower()) or _short_names().get(name.lower())
    if row is not None:
        return row
    architecture = efficient_architecture(name)
    return None if architecture is None else _efficient_variant(name, architecture)


def find_variant(name: str) -> Variant:
    """The row called ``name``, in full or without its organisation.

    Raises:
        UserError: no such row; the message proposes the nearest name.
    """
    row = look_up_variant(name)
    if row is None:
        advice = suggestion(name) or "'t5edge variants' lists all names."
        raise UserError(f"'{name}' is not in the table of variants. {advice}")
    return row


def suggestion(name: str) -> str:
    """``Did you mean ...?`` with the nearest name in the table, or nothing."""
    full, short = list(_rows()), list(_short_names())
    near = difflib.get_close_matches(name.lower(), full if "/" in name else short, n=1, cutoff=0.75)
    if not near:
        return ""
    row = look_up_variant(near[0])
    return f"Did you mean '{row.name if row is not None else near[0]}'?"


def expand_patterns(patterns: Sequence[str]) -> list[Variant]:
    """The rows that match any of the shell-style ``patterns``, with or without organisation, in table order.

    Raises:
        UserError: a pattern that matches nothing.
    """
    chosen: dict[str, Variant] = {}
    for pattern in patterns:
        matches = [row for row in variants() if _matches(row, pattern)]
        if not matches and not set(pattern) & set("*?["):
            matches = [find_variant(pattern)]
        if not matches:
            raise UserError(f"'{pattern}' matches no name in the table; 't5edge variants' lists all names.")
        chosen |= {row.name: row for row in matches}
    order = {row.name: position for position, row in enumerate(variants())}
    return sorted(chosen.values(), key=lambda row: order.get(row.name, len(order)))


def _matches(row: Variant, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for name in (row.name, row.short_name))
