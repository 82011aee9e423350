"""One mutation on one bundle: which check fails first, and if none does, what the mutation changes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from support.mutations.draft import Draft
from support.mutations.effect import Effect, Probe
from support.mutations.mutation import Inapplicable, Mutation
from t5edge.bundle.parity_report import CheckResult, not_run
from t5edge.errors import UserError
from t5edge.parity.ladder import CHECKS, Check, verify

BUNDLE_ALONE = tuple(check for check in CHECKS if check.name != "1 operators")
"""The checks that look at the bundle: operators are judged by the blocks of the program."""
DEAR = (
    *("8 task", "9 text", "arithmetic", "weights", "graphs"),
    *("2 encoder", "3 range", "5 padding", "4 cache", "3 logits", "6 lengths", "7 generation", "3 texts"),
)
"""The same by what they take on t5-base: up to 4 seconds, graphs 25, the others up to 114 in fp32. In other precisions
they need PyTorch at 16 bits, twice."""
NO_EFFECT = "no effect"
MISSED = "MISSED"


@dataclass(frozen=True)
class Outcome:
    """``caught`` is the check that failed first, ``refused: why`` for a clean refusal, ``error: what`` for a
    traceback, MISSED or NO_EFFECT; ``effect`` is measured where nothing was caught.
    """

    family: str
    precision: str
    mutation: str
    category: str
    expected: str
    caught: str
    measure: str = ""
    effect: Effect | None = None

    @property
    def counts(self) -> bool:
        """Whether the mutation changed anything, so that something was there to catch."""
        return self.caught != NO_EFFECT

    @property
    def found(self) -> bool:
        return self.caught not in (NO_EFFECT, MISSED) and not self.caught.startswith("error")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; infinity, which JSON has not, by its name."""
        data = asdict(self)
        if self.effect is not None and not math.isfinite(self.effect.kl):
            data["effect"]["kl"] = str(self.effect.kl)
        return data

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Outcome:
        """The inverse of ``to_dict``."""
        effect = data["effect"]
        if effect is not None:
            effect = Effect(float(effect["kl"]), effect["top1"], effect["where"], tuple(effect["other"]))
        return Outcome(**{**data, "effect": effect})


def until_failure(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks; after the first failure nothing is run any more."""
    failed: list[str] = []

    def stopping(run: Callable[[Any, str], Iterator[CheckResult]]) -> Callable[[Any, str], Iterator[CheckResult]]:
        def judge(subject: Any, name: str) -> Iterator[CheckResult]:
            if failed:
                yield not_run(name, f"{failed[0]} failed")
                return
            try:
                for result in run(subject, name):
                    yield result
                    if result.verdict == "fail":
                        failed.append(name)
                        return
            except FloatingPointError:
                failed.append(name)
                raise

        return judge

    return tuple(replace(check, run=stopping(check.run)) for check in checks)


def mutated(bundle: Path, mutation: Mutation, out: Path) -> Path:
    """A copy of ``bundle`` with the mutation in it and its hashes correct.

    Raises:
        Inapplicable: the bundle has no such part.
    """
    draft = Draft(Path(shutil.copytree(bundle, out, dirs_exist_ok=True)))
    mutation.apply(draft)
    draft.finish()
    return out


@dataclass
class Sound:
    """The bundle without a mutation: a check may judge its copies once it has passed here."""

    bundle: Path
    passed: set[str] = field(default_factory=set)

    def require(self, checks: Sequence[Check]) -> None:
        left = tuple(check for check in checks if check.name not in self.passed)
        if left:
            failures = verify(self.bundle, checks=left).failures
            assert not failures, f"the sound bundle fails: {failures[0].describe()}"
            self.passed |= {check.name for check in left}


def first_failure(folder: Path, checks: Sequence[Check] = BUNDLE_ALONE) -> tuple[str, str]:
    """The check that fails first, and its measure; both empty where none does."""
    try:
        failures = verify(folder, checks=until_failure(checks)).failures
    except UserError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001
        return f"error: {type(error).__name__}", str(error)[:200]
    return (failures[0].name, failures[0].describe()) if failures else ("", "")


def soonest(mutation: Mutation) -> tuple[tuple[Check, ...], ...]:
    """Stages of the ladder for large models: the check that is made for the fault, then the others, dear ones last."""
    made = [check for check in BUNDLE_ALONE if check.name.split()[-1] == mutation.expected]
    others = sorted((check for check in BUNDLE_ALONE if check not in made), key=lambda check: DEAR.index(check.name))
    return tuple((check,) for check in (*made, *others))


def judge(
    family: str,
    sound: Sound,
    mutation: Mutation,
    out: Path,
    probe: Probe,
    stages: Sequence[Sequence[Check]] = (BUNDLE_ALONE,),
) -> Outcome | None:
    """What comes of one mutation; None where it does not apply. ``out`` is a folder to use and remove.

    ``stages``: checks that are run one group after the other until one fails.
    """
    name = Draft(sound.bundle).manifest.precision.name
    if name not in mutation.precisions:
        return None
    try:
        folder = mutated(sound.bundle, mutation, out)
    except Inapplicable:
        shutil.rmtree(out)
        return None
    caught, measure = _caught(folder, sound, stages)
    effect = None
    if not caught:
        effect = probe.effect(folder)
        caught = MISSED if effect.changed or mutation.category == "manifest" else NO_EFFECT
    shutil.rmtree(out)
    facts = (family, name, mutation.name, mutation.category, mutation.expected)
    return Outcome(*facts, caught, measure, effect)


def _caught(folder: Path, sound: Sound, stages: Sequence[Sequence[Check]]) -> tuple[str, str]:
    for checks in stages:
        sound.require(checks)
        found = first_failure(folder, checks)
        if found[0]:
            return found
    return "", ""
