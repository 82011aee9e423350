"""Which quantization points are excluded: the sensitivity of each is measured, and the most sensitive ones stay in the
compute dtype until the gate holds.

    gate      KL <= half of the precision's max_kl     top-1 >= half way from the precision's min_top1 to 1
              of an encoder alone: errors of the hidden states <= half of the precision's limits on them
    order     points by the divergence that each causes on its own, largest first
    search    0 points excluded; where that fails 1, 2, 3, 4, 6, 8, ... and all, side by side in one pass: the fewest
              that pass are taken. So a checkpoint is read four times at most: ranges, sensitivity, and these two.

Half, because parity is judged on other texts by the precision's own limits. No role (lm_head, embedding, wo) is assumed
to be sensitive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from t5edge.bundle.precision import Precision
from t5edge.calibration.points import QuantizationPoint
from t5edge.calibration.variants import Divergence, Found, Rounding, measure_variants

if TYPE_CHECKING:
    from t5edge.calibration.texts import CalibrationTexts
    from t5edge.exporter.checkpoint.open import Checkpoint

SHARE = 0.5
"""The part of the precision's allowance that the calibration texts may use up."""


@dataclass(frozen=True)
class Gate:
    """The limits by their names, and what was tried: (points excluded, divergence), the chosen one last."""

    limits: Mapping[str, float]
    tried: tuple[tuple[int, Found], ...]

    @property
    def result(self) -> Found:
        return self.tried[-1][1]

    @property
    def tie(self) -> float:
        """Nats within which two tokens count as equal."""
        return self.limits.get("tie", 0.0)

    def to_dict(self) -> dict[str, Any]:
        tried = [{"kept": excluded, **asdict(found)} for excluded, found in self.tried]
        return {**self.limits, "tried": tried}


def holds(precision: Precision, found: Found) -> bool:
    """Whether a divergence is within the part of the precision's allowance that calibration may use."""
    if isinstance(found, Divergence):
        return found.kl <= max_kl(precision) and found.top1 >= min_top1(precision)
    limits = hidden_limits(precision)
    return found.hidden <= limits["max_hidden"] and found.token <= limits["max_token"]


def logit_limits(precision: Precision) -> dict[str, float]:
    """What the gate asks of next-token distributions."""
    return {"max_kl": max_kl(precision), "min_top1": min_top1(precision), "tie": tie_margin(precision)}


def hidden_limits(precision: Precision) -> dict[str, float]:
    """What the gate asks of an encoder alone (``HiddenDivergence``)."""
    limits = precision.quality
    assert limits is not None, f"{precision.name} is not quantized"
    return {"max_hidden": SHARE * limits.hidden, "max_token": SHARE * limits.token}


def max_kl(precision: Precision) -> float:
    return SHARE * (precision.max_kl if precision.max_kl is not None else float("inf"))


def tie_margin(precision: Precision) -> float:
    """Nats within which tokens may swap places under the divergence that is allowed (Pinsker's inequality).

    0 where ties are counted.
    """
    return 0.0 if precision.count_ties else (2 * max_kl(precision)) ** 0.5


def min_top1(precision: Precision) -> float:
    return 1 - SHARE * (1 - (precision.min_top1 if precision.min_top1 is not None else 0.0))


def measure_sensitivity(
    checkpoint: Checkpoint,
    texts: CalibrationTexts,
    points: Sequence[QuantizationPoint],
    roundings: Mapping[str, Rounding],
    on_layer: Callable[[], None] | None = None,
) -> dict[str, Found]:
    """The divergence that each point causes when nothing else is quantized, by its name."""
    names = [point.name for point in points if point.name in roundings]
    variants = [frozenset({name}) for name in names]
    found = measure_variants(checkpoint, texts.sensitivity, points, roundings, variants, on_layer=on_layer)
    return dict(zip(names, found, strict=True))


def place(
    checkpoint: Checkpoint,
    texts: CalibrationTexts,
    precision: Precision,
    points: Sequence[QuantizationPoint],
    roundings: Mapping[str, Rounding],
    sensitivity: Mapping[str, Found],
    on_layer: Callable[[], None] | None = None,
) -> tuple[frozenset[str], Gate]:
    """Names of the points to exclude, and how the gate was passed."""
    ranked = sorted(sensitivity, key=lambda name: -sensitivity[name].rank)
    limits = hidden_limits if checkpoint.architecture.encoder_alone else logit_limits
    tried: list[tuple[int, Found]] = []
    for counts in _rounds(len(ranked)):
        variants = [frozenset(ranked[count:]) for count in counts]
        found = measure_variants(checkpoint, texts.gate, points, roundings, variants, tie_margin(precision), on_layer)
        for count, divergence in zip(counts, found, strict=True):
            tried.append((count, divergence))
            if holds(precision, divergence):
                return frozenset(ranked[:count]), Gate(limits(precision), tuple(tried))
    raise AssertionError("a model with nothing quantized diverges from itself")


def _rounds(points: int) -> list[list[int]]:
    """Everything quantized first, which is the usual end; then more and more excluded, side by side."""
    counts, step = [1, 2, 3], 4
    while step < points:
        counts += [step, step * 3 // 2]
        step *= 2
    return [[0], [*(count for count in counts if count < points), points]]
