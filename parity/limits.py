"""The limits of a precision, in numbers: one rule for all of them, by their facts.

A precision that bounds errors says so as it stands (``max_relative_error``) or in units of the error that PyTorch
makes at the compute dtype (``max_error_ratio``). A quantized one bounds the next-token distributions (``max_kl``,
``min_top1``) and, by fixed figures, everything else (``QuantizedLimits``); on odd lengths these grow as PyTorch's own
bfloat16 error does there: quantization noise and rounding noise are amplified alike. No limit depends on the errors of
the bundle itself, nor on what its manifest says of limits. ``docs/parity.md`` tells where the figures come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from t5edge.bundle.dtype import DTYPES, NARROW
from t5edge.bundle.parity_report import PASS, CheckResult, at_least, at_most, failure
from t5edge.bundle.precision import Precision, QuantizedLimits
from t5edge.parity.measures import LogitErrors, mean_interval, wilson

FLOAT32_ERROR = 1e-5
"""Relative error that two correct float32 implementations may differ by."""
MANY = 1000
"""Decisions from which on a rate is judged as it stands."""
TIE_SPREAD = 4.0
"""Two logits are tied when they lie within this many times the root mean square error that is granted."""
MOST_AMPLIFIED = 2.0
"""A quantized bundle's limits grow at most by this factor on odd lengths."""
SCALE_DTYPE = "bfloat16"
"""PyTorch's dtype that tells where a quantized bundle's errors are amplified."""
ROUNDING = {name: DTYPES[name].rounding or 0.0 for name in NARROW}
BROKEN_DOWN = 64.0
"""PyTorch's own error never counts as more roundings than this: beyond, PyTorch itself overflowed or clamped."""
Measured = Literal["hidden", "cross", "logits", "position", "log_probs", "pooled", "token", "embedding"]
"""The relative errors, by the fields of ``OwnErrors``."""


@dataclass(frozen=True)
class OwnErrors:
    """The relative errors of a model on a batch, and the KL divergence (nats) they cause: the unit of other errors.

    ``position`` is the worst position's error of the logits (``LogitErrors.worst_position``); ``pooled``, ``token`` and
    ``embedding`` are the worst distances of ``HiddenErrors``.
    """

    hidden: float
    cross: float
    logits: float
    position: float
    log_probs: float
    kl: float
    pooled: float = 0.0
    token: float = 0.0
    embedding: float = 0.0


def quantized_unit(limits: QuantizedLimits) -> OwnErrors:
    """What the errors of a quantized bundle on texts count in."""
    return OwnErrors(
        hidden=limits.hidden,
        cross=limits.hidden,
        logits=limits.logits,
        position=limits.position,
        log_probs=limits.logits,
        kl=0.0,
        pooled=limits.hidden,
        token=limits.token,
        embedding=limits.hidden,
    )


def ceiling(compute: str) -> float:
    """The largest own error that is believed, relative."""
    return BROKEN_DOWN * ROUNDING[compute]


def bounds_errors(precision: Precision) -> bool:
    """Whether the precision bounds the errors themselves; quantized ones bound what becomes of the distributions."""
    return precision.max_relative_error is not None or precision.max_error_ratio is not None


def own_dtype(precision: Precision) -> str | None:
    """The 16-bit dtype at which PyTorch's own error is needed, or None."""
    if precision.max_relative_error is not None:
        return None
    return precision.compute if precision.max_error_ratio is not None else SCALE_DTYPE


def error_limit(precision: Precision, unit: OwnErrors | None, of: Measured) -> float:
    """Bound on the relative error of ``of``."""
    if precision.max_relative_error is not None:
        return precision.max_relative_error
    assert unit is not None, f"{precision.name} is judged by a unit"
    return (precision.max_error_ratio or 1.0) * float(getattr(unit, of))


def tie_margin(precision: Precision, unit: OwnErrors | None, rms_logit: float) -> float:
    """Logits closer than this in the reference may swap places: what the granted error explains.

    It depends on the reference alone; if quantized, it is a fixed number of nats, and 0 where ties are counted.
    """
    if precision.quality is not None:
        return 0.0 if precision.count_ties else precision.quality.tie
    if precision.max_relative_error is not None:
        return TIE_SPREAD * precision.max_relative_error * rms_logit
    assert unit is not None, f"{precision.name} is judged by a unit"
    return TIE_SPREAD * (precision.max_error_ratio or 1.0) * unit.logits * rms_logit


def kl_limit(precision: Precision, unit: OwnErrors | None) -> float | None:
    """Bound on the mean KL divergence. It grows with the square of the error that is allowed."""
    if precision.max_kl is None or precision.max_error_ratio is None or unit is None:
        return precision.max_kl
    return max(precision.max_kl, precision.max_error_ratio**2 * unit.kl)


def judge_error(name: str, what: str, value: float, limit: float, **details: Any) -> CheckResult:
    """One relative error against its bound; NaN and infinity get a result of their own name."""
    if not math.isfinite(value):
        return failure(name, f"NaN or infinity in the {what}", **details)
    return at_most(name, f"relative error, {what}", value, limit, **details)


def judge_logits(
    name: str, errors: LogitErrors, precision: Precision, unit: OwnErrors | None, what: str = "logits"
) -> Iterator[CheckResult]:
    """All gates of a precision on logits of real text, called ``what`` in the measures."""
    if errors.not_finite:
        yield _not_finite(name, errors, what)
        return
    facts = {
        "positions": errors.positions,
        "relative_error": errors.relative,
        "largest_error": float(errors.worst.max()),
        "largest_kl": float(errors.kl.max()),
    }
    if bounds_errors(precision):
        yield at_most(name, f"relative error, {what}", errors.relative, error_limit(precision, unit, "logits"), **facts)
        limit = error_limit(precision, unit, "log_probs")
        yield at_most(name, f"log-probability error, {what}", errors.log_prob_relative, limit, **facts)
    bound = kl_limit(precision, unit)
    if bound is not None:
        interval = mean_interval(errors.kl)
        yield at_most(name, f"mean KL (nats), {what}", float(errors.kl.mean()), bound, interval=interval, **facts)
    if precision.min_top1 is not None:
        yield _judge_top1(name, errors, precision, unit, what, precision.min_top1)


def _judge_top1(
    name: str, errors: LogitErrors, precision: Precision, unit: OwnErrors | None, what: str, least: float
) -> CheckResult:
    margin = tie_margin(precision, unit, errors.rms_logit)
    share, wrong, ties = errors.top1(margin)
    facts = {"wrong": wrong, "ties": ties, "margin": margin, **rates(errors.agreeing, errors.positions, ties)}
    return judge_rate(name, f"top-1 agreement, {what}", share, least, facts)


def judge_rate(name: str, measure: str, share: float, least: float, facts: dict[str, Any]) -> CheckResult:
    """A rate against the least that is granted; ``facts``: its ``interval``, as of ``rates``.

    Of fewer decisions than ``MANY`` the interval's upper end must reach it: a few dozen cannot tell 0.88 from 0.9.
    """
    found = at_least(name, measure, share, least, **facts)
    decided = facts.get("decided", 0)
    return replace(found, verdict=PASS) if decided < MANY and facts["interval"][1] >= least else found


def rates(equal: int, total: int, ties: int) -> dict[str, Any]:
    """Details of an agreement: ``raw``, ties counted as wrong, and both rates' 95 % intervals; ties are left out."""
    return {
        "raw": equal / total if total else 1.0,
        "raw_interval": wilson(equal, total),
        "interval": wilson(equal, total - ties),
        "decided": total - ties,
    }


def judge_briefly(
    name: str, errors: LogitErrors, precision: Precision, unit: OwnErrors | None, what: str, **details: Any
) -> CheckResult:
    """The relative error alone: for odd inputs and for a bundle against itself."""
    if errors.not_finite:
        return _not_finite(name, errors, what)
    return at_most(name, f"relative error, {what}", errors.relative, error_limit(precision, unit, "logits"), **details)


def _not_finite(name: str, errors: LogitErrors, what: str) -> CheckResult:
    return failure(name, f"NaN or infinity in the {what}", broken=errors.not_finite, positions=errors.positions)
