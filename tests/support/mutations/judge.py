"""One mutation on one bundle: which check fails first, and if none does, what the mutation changes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from support.mutations.draft import Draft
from support.mutations.effect import Effect, Probe
from support.mutations.mutation import Inapplicable, Mutation
from t5edge.bundle.parity_report import CheckResult, not_run
from t5edge.errors import UserError
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity import ladder
from t5edge.parity.ladder import CHECKS, Check, verify

BUNDLE_ALONE = tuple(check for check in CHECKS if check.name != "1 operators")
"""The checks that look at the bundle: operators are judged by the blocks of the program."""
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


@contextmanager
def remembered_reference() -> Iterator[None]:
    """PyTorch answers each question once for all mutations of a bundle, and wrong parts are not looked for."""
    measured: dict[Any, Any] = {}
    generated: dict[Any, Any] = {}
    measure, generate = ladder.measure_reference, WholeReference.generate

    def measure_once(checkpoint: Any, narrow: Any, batches: Any, on_batch: Any, *rest: Any) -> Any:
        arrays = [(name, *_key(batch.input_ids, batch.decoder_input_ids)) for name, batch in batches.items()]
        key = (checkpoint.content_key(), narrow, tuple(arrays), rest)
        if key not in measured:
            measured[key] = measure(checkpoint, narrow, batches, on_batch, *rest)
        return measured[key]

    def generate_once(self: WholeReference, ids: Any, mask: Any, **settings: Any) -> Any:
        if "logits_processor" in settings:
            return generate(self, ids, mask, **settings)
        key = (id(self), *_key(ids, mask), repr(sorted(settings.items())))
        if key not in generated:
            generated[key] = generate(self, ids, mask, **settings)
        return generated[key].copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "measure_reference", measure_once)
        patch.setattr(ladder, "locate", lambda *_: [])
        patch.setattr(WholeReference, "generate", generate_once)
        yield


def _key(*arrays: Any) -> tuple[Any, ...]:
    return tuple((array.shape, array.tobytes()) for array in arrays)


def until_failure(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks, of which none is run after one that failed."""
    failed: list[str] = []

    def stopping(run: Callable[[Any, str], Iterator[CheckResult]]) -> Callable[[Any, str], Iterator[CheckResult]]:
        def judge(subject: Any, name: str) -> Iterator[CheckResult]:
            if failed:
                yield not_run(name, f"{failed[0]} failed")
                return
            try:
                for result in run(subject, name):
                    if result.verdict == "fail":
                        failed.append(name)
                    yield result
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


def first_failure(folder: Path, checks: Sequence[Check] = BUNDLE_ALONE) -> tuple[str, str]:
    """The check that fails first, and its measure; both empty where none does."""
    try:
        failures = verify(folder, checks=until_failure(checks)).failures
    except UserError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001
        return f"error: {type(error).__name__}", str(error)[:200]
    return (failures[0].name, failures[0].describe()) if failures else ("", "")


def judge(family: str, bundle: Path, mutation: Mutation, out: Path, probe: Probe) -> Outcome | None:
    """What comes of one mutation; None where it does not apply. ``out`` is a folder to use and remove."""
    name = Draft(bundle).manifest.precision.name
    if name not in mutation.precisions:
        return None
    try:
        folder = mutated(bundle, mutation, out)
    except Inapplicable:
        shutil.rmtree(out)
        return None
    caught, measure = first_failure(folder)
    effect = None
    if not caught:
        effect = probe.effect(folder)
        caught = MISSED if effect.changed or mutation.category == "manifest" else NO_EFFECT
    shutil.rmtree(out)
    facts = (family, name, mutation.name, mutation.category, mutation.expected)
    return Outcome(*facts, caught, measure, effect)
