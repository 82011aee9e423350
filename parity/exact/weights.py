"""The check ``weights``: each stored tensor against the checkpoint's, within what its own format rounds away."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5edge.bundle.parity_report import CheckResult, at_most, failure
from t5edge.errors import UserError
from t5edge.parity.exact.keys import StoredKey
from t5edge.parity.exact.places import misplaced
from t5edge.parity.exact.stored import StoredWeights

if TYPE_CHECKING:
    import torch

    from t5edge.parity.subject import Opener, Subject

ROUNDED_TWICE = 1.01
"""Half steps of distance that are granted: a weight may be scaled in float32 before it is rounded."""
LARGEST_CODE = {8: 127, 4: 7}
LARGEST_SUM = 128
"""Of two codes one below the other: 255 times more does not fit into 16 bits."""
ROUNDED_SUM = 2
"""What rounding two codes may take from a sum of 128."""
TINY_SCALE = 1e-4
"""Float16 scales below may be subnormal, and rounded up by more."""


def weights(subject: Subject, name: str) -> Iterator[CheckResult]:
    """Every number of ``weights.safetensors`` is the checkpoint's, rounded to nearest; none is missing."""
    yield from check_weights(subject.opener, name, StoredWeights(subject.opener.folder, subject.checkpoint))


def check_weights(opener: Opener, name: str, stored: StoredWeights) -> Iterator[CheckResult]:
    """The same with the file opened already."""
    try:
        worst, where, seen, coarse, beyond = _compare_all(stored, opener.manifest.sums_fit)
    except (UserError, OSError, RuntimeError, ValueError) as error:
        yield failure(name, f"the weights cannot be read: {error}")
        return
    missing = sorted(set(stored.checkpoint.weight_names()) - seen)
    misplaced_names = misplaced(opener.folder, opener.manifest.ports)
    yield at_most(name, f"half steps from the checkpoint, worst at {where}", worst, ROUNDED_TWICE)
    yield _none(name, "scales coarser than their weights need", coarse)
    if opener.manifest.sums_fit:
        yield _none(name, "matrices with sums beyond 16 bits", beyond)
    yield _none(name, "weights that are not stored", missing)
    yield _none(name, "stored tensors that are not what they are called", stored.problems)
    yield _none(name, "graph weights read from another's place", misplaced_names)


def _none(name: str, what: str, found: list[str]) -> CheckResult:
    """There must be none; the first is named."""
    return at_most(name, f"{what}, the first {found[0]}" if found else what, len(found), 0, found=found[:12])


def _compare_all(stored: StoredWeights, sums_fit: bool) -> tuple[float, str, set[str], list[str], list[str]]:
    """The largest distance in half steps and where, the checkpoint's tensors that are stored, coarse scales, and
    matrices whose sums do not fit where all shall.
    """
    worst, where, seen, coarse, beyond = 0.0, "none", set[str](), list[str](), list[str]()
    for matrix, key in stored.matrices():
        distances, is_coarse = compare_matrix(stored, matrix, key)
        for name, distance in distances.items():
            if not distance <= worst:
                worst, where = distance, name
        seen |= set(distances)
        if sums_fit and key.part and all(map(_of_encoder, distances)):
            is_coarse, does_not_fit = _judge_sums(stored, matrix, key)
            beyond += [matrix] if does_not_fit else []
        coarse += [matrix] if is_coarse else []
    return worst, where, seen, coarse, beyond


def compare_matrix(stored: StoredWeights, matrix: str, key: StoredKey) -> tuple[dict[str, float], bool]:
    """Half steps from each of the checkpoint's tensors that ``matrix`` holds, and whether its scales are coarse."""
    found = stored.recover(matrix, key)
    distances = {one.name: _distance(stored, one.name, one.values, one.half_step) for one in found}
    return distances, bool(key.part) and _is_coarse(stored, matrix, key)


def _distance(stored: StoredWeights, name: str, values: torch.Tensor, half_step: torch.Tensor) -> float:
    """The largest distance of ``values`` from the checkpoint's, in half steps; infinite where not finite."""
    largest = float(((values - stored.checkpoint.read(name).float()).abs_() / half_step).max())  # NaN if one is
    return largest if math.isfinite(largest) else float("inf")


def _of_encoder(name: str) -> bool:
    """Whether the encoder's graph multiplies by this tensor of the checkpoint."""
    return name.startswith("encoder.") or name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight"))


def _judge_sums(stored: StoredWeights, name: str, key: StoredKey) -> tuple[bool, bool]:
    """Whether some scale is coarser than codes and sums of two need, and whether some sum is too large."""
    scales, largest = stored.steps(name, key)
    sums = stored.sums(name, key)
    short = (largest > 0) & (largest < LARGEST_CODE[key.bits]) & (sums < LARGEST_SUM - ROUNDED_SUM)
    return bool((short & (scales > TINY_SCALE)).any()) or not bool((scales > 0).all()), bool((sums > LARGEST_SUM).any())


def _is_coarse(stored: StoredWeights, name: str, key: StoredKey) -> bool:
    """Whether the largest code under some scale is not the last one there is: then the scale is coarser than needed."""
    scales, largest = stored.steps(name, key)
    short = (largest > 0) & (largest < LARGEST_CODE[key.bits])
    return bool((short & (scales > TINY_SCALE)).any()) or not bool((scales > 0).all())
