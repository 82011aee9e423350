"""int8 by int8 is exact on every CPU: what onnxruntime is asked, what is chosen, and what a bundle then computes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from support.saturation import QEMU, extreme_weight, needs_qemu, rounded_matmul, saturating_sums, start
from t5edge.runtime.onnxruntime import arithmetic
from t5edge.runtime.onnxruntime.arithmetic import FITTING, FLOAT, SATURATING, SIGNED, UNSIGNED, Arithmetic, open_exact
from t5edge.runtime.onnxruntime.sessions import CONFIGURATION

ENTRIES = CONFIGURATION["encoder"]
UNDER_QEMU = """
import numpy as np
from t5edge.runtime.onnxruntime.arithmetic import exact_ways, is_exact
print(is_exact({}), exact_ways()[0].entries)
"""

Pretend = Callable[..., None]


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """A CPU on which only these ways are exact."""
    return lambda *ways: monkeypatch.setattr(arithmetic, "exact_ways", lambda: ways)


def test_the_probe_is_our_own_spelling_of_a_matmul() -> None:
    expected = ir.to_proto(rounded_matmul(extreme_weight(8, 8))).SerializeToString()
    assert arithmetic.PROBE.read_bytes() == expected
    sums = saturating_sums(np.full((1, 8), 127), extreme_weight(8, 8))
    assert not (np.abs(sums) == 8 * 127**2).any(), "the probe cannot tell"


def test_what_is_chosen_for_this_cpu_does_not_saturate() -> None:
    weight = extreme_weight(96, 40)
    session, way = open_exact(ENTRIES, lambda entries: start(rounded_matmul(weight), entries))
    assert way.exact
    for rows in (1, 2, 5, 33):
        x = np.random.default_rng(rows).choice([127, -127, 126], (rows, 96))
        (found,) = session.run(None, {"x": x.astype(np.float32)})
        np.testing.assert_array_equal(found, x @ weight.astype(np.int64))


@pytest.mark.parametrize("way", [UNSIGNED, FLOAT])
def test_the_other_ways_are_exact_on_every_cpu(way: Arithmetic) -> None:
    assert arithmetic.is_exact(way.entries)
    assert arithmetic.is_exact({**ENTRIES, **way.entries})
    assert way in arithmetic.exact_ways()


def test_unsigned_weights_are_not_even_tried_where_they_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.29.0")
    monkeypatch.setattr(arithmetic, "is_exact", lambda entries: entries != UNSIGNED.entries or pytest.fail("tried"))
    assert arithmetic.exact_ways() == (SIGNED, FLOAT)


def test_a_cpu_that_saturates_gets_unsigned_weights(pretend: Pretend) -> None:
    pretend(UNSIGNED, FLOAT)
    session, way = open_exact(ENTRIES, lambda entries: start(rounded_matmul(extreme_weight(16, 8)), entries))
    assert way is UNSIGNED
    assert session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"


def test_weights_whose_sums_fit_are_run_as_they_are(pretend: Pretend) -> None:
    pretend(UNSIGNED, FLOAT)
    weight = np.full((16, 8), 64, np.int8)
    session, way = open_exact(ENTRIES, lambda entries: start(rounded_matmul(weight), entries), sums_fit=True)
    assert way is FITTING
    x = np.full((3, 16), 127, np.float32)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], x @ weight.astype(np.float32))


def test_weight_only_matrices_beside_the_others_get_float32(pretend: Pretend) -> None:
    pretend(UNSIGNED, FLOAT)
    weight = extreme_weight(16, 8)
    session, way = open_exact(ENTRIES, lambda entries: start(rounded_matmul(weight, weight_only=True), entries))
    assert way is FLOAT, "onnxruntime takes weights without zero points now: the fallback can go"
    x = np.full((3, 16), 127, np.float32)
    for found in session.run(None, {"x": x}):
        np.testing.assert_allclose(found, x @ weight.astype(np.float32), rtol=1e-6)


def test_a_graph_that_cannot_be_loaded_says_so(pretend: Pretend) -> None:
    def broken(entries: Mapping[str, str]) -> None:
        raise ValueError(str(entries))

    for ways in ((SIGNED, UNSIGNED, FLOAT), (UNSIGNED, FLOAT), (FLOAT,)):
        pretend(*ways)
        with pytest.raises(ValueError, match=r"\{"):
            open_exact({}, broken)


def test_a_cpu_without_an_exact_way_is_named(pretend: Pretend) -> None:
    pretend()
    with pytest.warns(UserWarning, match=r"int8 is not exact on this CPU: sums .* overflow 16 bits"):
        _, way = open_exact(ENTRIES, lambda entries: start(rounded_matmul(extreme_weight(16, 8)), entries))
    assert way is SATURATING
    assert str(way).startswith("saturating (")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 fma\n", ("AVX2",)),
        ("flags\t: avx2 avx512bw avx512_vnni amx_int8\n", ("AVX2", "AVX-512", "AVX-512 VNNI", "AMX")),
        ("flags\t: avx2 avx_vnni\n", ("AVX2", "AVX-VNNI")),
        ("Features\t: fp asimd asimddp i8mm\n", ("dot product", "i8mm")),
        ("nothing", ()),
    ],
)
def test_instruction_sets_are_read_from_linux(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert arithmetic.instruction_sets(tmp_path / "cpuinfo") == expected
    assert arithmetic.instruction_sets(tmp_path / "missing") == ()


@needs_qemu
@pytest.mark.parametrize(
    ("cpu", "signed", "chosen"), [("Haswell", "False", dict(UNSIGNED.entries)), ("Nehalem", "True", {})]
)
def test_emulated_cpus_without_vnni(cpu: str, signed: str, chosen: dict[str, str]) -> None:
    command = [str(QEMU), "-cpu", cpu, sys.executable, "-c", UNDER_QEMU]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"{signed} {chosen}"
