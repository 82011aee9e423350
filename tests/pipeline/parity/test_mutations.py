"""Bundles damaged in realistic ways, their hashes corrected: the ladder must say so, whatever the precision."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bundles import Workshop
from support.exports import GATED, Exports, checks
from support.mutations import MUTATIONS, find_mutation
from support.mutations.draft import Draft, packed, unpacked
from support.mutations.effect import Probe
from support.mutations.families import PRECISIONS, SMALL
from support.mutations.judge import NO_EFFECT, Sound, first_failure, judge, mutated
from support.mutations.mutation import EVERY, Mutation
from support.mutations.remembered import remembered_reference
from support.mutations.run import run
from support.mutations.table import misses, share
from t5edge.parity.ladder import CHECKS

FEWEST = 60
LEAST = 0.95
IN_FLOAT = (
    "decoder cross-attention o, heads 0 and 1 swapped",
    "encoder bias off by one position",
    "cache wrong after 200 tokens, decoder_buffered alone",
    "padding ignored by beams, decoder_buffered alone",
    "beams read the next sentence's cross keys, decoder alone",
    "RMSNorm epsilon 1e-3, decoder",
    "manifest allows any error, logits times 1.2",
    "two tokens swapped",
)
IN_INTEGERS = (
    "encoder self-attention q, heads 0 and 1 swapped",
    "decoder wi_0 and wi_1 swapped",
    "causal mask leaks 20 %",
    "logits times 1.2",
    "one weight's scales 10 % larger",
    "one activation scale doubled",
)


@pytest.fixture(scope="module", autouse=True)
def remembered() -> Iterator[None]:
    with remembered_reference():
        yield


def test_there_are_enough_mutations_of_every_kind() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= FEWEST
    assert len({mutation.category for mutation in MUTATIONS}) >= 10
    assert {mutation.expected for mutation in MUTATIONS} <= {check.name.split()[-1] for check in CHECKS} | {"refused"}
    for precision in PRECISIONS:
        assert sum(precision in mutation.precisions for mutation in MUTATIONS) >= FEWEST


def test_four_bits_are_packed_as_they_were() -> None:
    import numpy as np

    array = np.arange(256, dtype=np.uint8)
    assert (packed(unpacked(array)) == array).all()


@pytest.mark.parametrize("name", IN_FLOAT)
def test_a_damaged_float_bundle_fails(name: str, demo: Workshop, tmp_path: Path) -> None:
    _fails(find_mutation(name), demo.bundle("fp32"), tmp_path)


@pytest.mark.parametrize("name", IN_INTEGERS)
def test_a_damaged_integer_bundle_fails(name: str, exports: Exports, tmp_path: Path) -> None:
    _fails(find_mutation(name), exports.bundle(GATED, "int8"), tmp_path)


def _fails(mutation: Mutation, bundle: Path, tmp_path: Path) -> None:
    """The check that is made for this fault fails; it alone is run."""
    folder = mutated(bundle, mutation, tmp_path / "mutated")
    expected = tuple(check for check in CHECKS if check.name.split()[-1] == mutation.expected)
    assert first_failure(folder, expected)[0] == expected[0].name


def test_another_start_token_fails_generation(demo: Workshop, tmp_path: Path) -> None:
    folder = mutated(demo.bundle("fp32"), find_mutation("start token changed"), tmp_path / "mutated")
    found, measure = first_failure(folder, checks("7"))
    assert found == "7 generation"
    assert "answers begin with token 2" in measure


@pytest.mark.slow
def test_what_changes_nothing_is_not_counted(demo: Workshop, tmp_path: Path) -> None:
    bundle = demo.bundle("fp32")
    nothing = Mutation("nothing", "weights", "weights", lambda draft: None, EVERY)
    outcome = judge("t5-demo", Sound(bundle), nothing, tmp_path / "mutated", Probe(bundle))
    assert outcome is not None
    assert outcome.caught == NO_EFFECT
    assert share([outcome]) == (0, 0)


def test_a_sound_copy_keeps_its_hashes(demo: Workshop, tmp_path: Path) -> None:
    draft = Draft(Path(shutil.copytree(demo.bundle("fp32"), tmp_path / "copy")))
    before = draft.manifest.hashes
    draft.finish()
    assert Draft(draft.folder).manifest.hashes == before


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", SMALL)
def test_nearly_every_mutation_is_caught(family: str, precision: str, tmp_path: Path) -> None:
    """docs/parity-mutations.md has the table; ``python -m support.mutations --write`` makes it."""
    outcomes = list(run(family, precision, tmp_path))
    caught, counted = share(outcomes)
    assert counted >= FEWEST
    assert caught >= LEAST * counted, "\n".join(misses(outcomes))
