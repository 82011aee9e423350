"""All mutations on one bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from support.mutations import MUTATIONS
from support.mutations.effect import Probe
from support.mutations.families import bundle_of
from support.mutations.judge import Outcome, first_failure, judge, remembered_reference


def run(family: str, precision: str, root: Path, chosen: str = "", every: int = 1) -> Iterator[Outcome]:
    """Every mutation that applies to one bundle, made in ``root``.

    ``chosen`` is part of their names; ``every``: only each so many is taken.
    """
    bundle = bundle_of(family, precision, root)
    with remembered_reference(), TemporaryDirectory(dir=root) as place:
        folder = Path(place) / "mutated"
        sound = first_failure(bundle)
        assert not sound[0], f"the sound bundle fails: {sound}"
        probe = Probe(bundle)
        for mutation in MUTATIONS[::every]:
            if chosen in mutation.name:
                outcome = judge(family, bundle, mutation, folder, probe)
                if outcome is not None:
                    yield outcome
