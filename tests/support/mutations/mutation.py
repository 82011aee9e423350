"""A mutation: one realistic way in which a finished bundle can be wrong, and the check that must say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.mutations.draft import Draft

FLOAT = ("fp32", "fp16", "bf16")
QUANTIZED = ("int8", "int8-weight", "int4-weight")
EVERY = FLOAT + QUANTIZED


class Inapplicable(Exception):
    """The bundle lacks what would be changed: no gate, one layer, no decoder with buffers."""


@dataclass(frozen=True)
class Mutation:
    """``apply`` changes a copy of a bundle; hashes are corrected afterwards, so that only numbers can tell.

    Attributes:
        name: one line for people.
        category: the part of the bundle that is wrong.
        expected: the check that should fail, by the last word of its name; another that fails is as good.
        apply: raises ``Inapplicable`` where the bundle has no such part.
        precisions: those in which the fault can happen.
    """

    name: str
    category: str
    expected: str
    apply: Callable[[Draft], None]
    precisions: tuple[str, ...] = EVERY


def require(condition: bool) -> None:
    """Raise ``Inapplicable`` unless ``condition``."""
    if not condition:
        raise Inapplicable
