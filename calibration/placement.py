"""Which sites are quantized: each is measured alone, and the most sensitive go back to float until the gate holds.

    gate      KL <= half of the row's max_kl     top-1 >= half way from the row's min_top1 to 1
    order     sites by the divergence that they cause alone, largest first
    search    0, 1, 2, 3, 4, 6, 8, ... sites kept, all tried side by side in one pass; the fewest that pass are kept

Half, because the ladder judges other texts by the row itself. A role's odds (lm_head, embedding, wo) are not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from t5edge.bundle.precision import Precision
from t5edge.calibration.points import QuantizationPoint
from t5edge.calibration.variants import Divergence, Rounding, measure_variants

if TYPE_CHECKING:
    from t5edge.calibration.texts import CalibrationTexts
    from t5edge.exporter.checkpoint.open import Checkpoint

SHARE = 0.5
"""The part of the row's allowance that the calibration texts may use up."""


@dataclass(frozen=True)
class Gate:
    """The limits, and what was tried: (sites kept, divergence), the chosen one last.

    ``tie``: nats within which two tokens count as equal.
    """

    max_kl: float
    min_top1: float
    tie: float
    tried: tuple[tuple[int, Divergence], ...]

    @property
    def result(self) -> Divergence:
        return self.tried[-1][1]

    def to_dict(self) -> dict[str, Any]:
        return {
            "max_kl": self.max_kl,
            "min_top1": self.min_top1,
            "tie": self.tie,
            "tried": [{"kept": kept, **asdict(found)} for kept, found in self.tried],
        }


def holds(row: Precision, found: Divergence) -> bool:
    """Whether a divergence is within the part of the row's allowance that calibration may use."""
    return found.kl <= max_kl(row) and found.top1 >= min_top1(row)


def max_kl(row: Precision) -> float:
    return SHARE * (row.max_kl if row.max_kl is not None else float("inf"))


def tie_margin(row: Precision) -> float:
    """Tokens so close in log-probability may swap places within the row's divergence (Pinsker's inequality), nats.

    0 where the row counts ties.
    """
    return 0.0 if row.count_ties else (2 * max_kl(row)) ** 0.5


def min_top1(row: Precision) -> float:
    return 1 - SHARE * (1 - (row.min_top1 if row.min_top1 is not None else 0.0))


def measure_alone(
    checkpoint: Checkpoint,
    texts: CalibrationTexts,
    sites: Sequence[QuantizationPoint],
    roundings: Mapping[str, Rounding],
    on_layer: Callable[[], None] | None = None,
) -> dict[str, Divergence]:
    """The divergence that each site causes alone, by its name."""
    names = [site.name for site in sites if site.name in roundings]
    variants = [frozenset({name}) for name in names]
    found = measure_variants(checkpoint, texts.alone, sites, roundings, variants, on_layer=on_layer)
    return dict(zip(names, found, strict=True))


def place(
    checkpoint: Checkpoint,
    texts: CalibrationTexts,
    row: Precision,
    sites: Sequence[QuantizationPoint],
    roundings: Mapping[str, Rounding],
    alone: Mapping[str, Divergence],
    on_layer: Callable[[], None] | None = None,
) -> tuple[frozenset[str], Gate]:
    """Names of the sites that stay in the compute dtype, and how the gate was passed."""
    ranked = sorted(alone, key=lambda name: -alone[name].kl)
    tried: list[tuple[int, Divergence]] = []
    for counts in _rounds(len(ranked)):
        variants = [frozenset(ranked[count:]) for count in counts]
        found = measure_variants(checkpoint, texts.gate, sites, roundings, variants, tie_margin(row), on_layer)
        for count, divergence in zip(counts, found, strict=True):
            tried.append((count, divergence))
            if holds(row, divergence):
                return frozenset(ranked[:count]), Gate(max_kl(row), min_top1(row), tie_margin(row), tuple(tried))
    raise AssertionError("a model with nothing quantized diverges from itself")


def _rounds(sites: int) -> list[list[int]]:
    """Everything quantized first, which is the usual end; then more and more kept, side by side."""
    counts, step = [1, 2, 3], 4
    while step < sites:
        counts += [step, step * 3 // 2]
        step *= 2
    return [[0], [count for count in counts if count < sites], [sites]]
