"""All mutations on one bundle."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from support.mutations import MUTATIONS
from support.mutations.effect import Probe
from support.mutations.families import SMALL, bundle_of
from support.mutations.judge import BUNDLE_ALONE, Outcome, Sound, judge, soonest
from support.mutations.remembered import remembered_reference


def run(
    family: str, precision: str, root: Path, chosen: str = "", every: int = 1, known: Container[str] = ()
) -> Iterator[Outcome]:
    """Every mutation that applies to one bundle, made in ``root``.

    ``chosen`` is part of their names; ``every``: only each so many is taken; ``known``: names left out. A large
    model's checks are run in the order that finds the fault soonest, a small one's in the ladder's.
    """
    bundle = bundle_of(family, precision, root)
    with remembered_reference(), TemporaryDirectory(dir=root) as place:
        folder = Path(place) / "mutated"
        sound = Sound(bundle)
        probe = Probe(bundle)
        for mutation in MUTATIONS[::every]:
            if chosen in mutation.name and mutation.name not in known:
                stages = (BUNDLE_ALONE,) if family in SMALL else soonest(mutation)
                outcome = judge(family, sound, mutation, folder, probe, stages)
                if outcome is not None:
                    yield outcome
