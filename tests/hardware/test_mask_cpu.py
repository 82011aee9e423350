"""The CPUs that mask_cpu pretends: ONNX Runtime's sums of int8 saturate exactly where they do on the real ones."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hardware.mask_cpu import run
from t5edge.runtime.onnxruntime.arithmetic import instruction_sets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux" or platform.machine() != "x86_64" or None in map(shutil.which, run.NEEDED),
        reason="needs Linux on x86-64, gcc and objdump",
    ),
    pytest.mark.skipif("MASK_CPU_LEAF7" in os.environ, reason="the CPU is masked already"),
]
ASK = """
import faulthandler, json
import torch
from numpy._core._multiarray_umath import __cpu_features__ as numpy_features
faulthandler.enable()  # as pytest does: with a handler of SIGILL
from t5edge.runtime.onnxruntime.arithmetic import exact_ways, instruction_sets, is_exact
torch_uses = torch.backends.cpu.get_cpu_capability()
print(json.dumps([is_exact({}), len(exact_ways()), instruction_sets(), torch_uses, numpy_features["X86_V4"]]))
"""

MULTIPLY = """
import json
import numpy as np
from support.saturation import rounded_matmul, start
random, wrong = np.random.default_rng(0), 0
for rows, columns in ((8, 8), (30, 17), (31, 33), (773, 100)):
    weight = random.integers(-127, 128, (rows, columns))
    first, second = weight[0 : rows // 2 * 2 : 2], weight[1::2]
    second[:] = np.clip(second, -128 - first, 128 - first)
    session = start(rounded_matmul(weight.astype(np.int8)), {})
    for count in (1, 2, 5, 64):
        for x in (random.choice([-128, 127], (count, rows)), np.full((count, rows), 127), np.full((count, rows), -128)):
            (found,) = session.run(None, {"x": x.astype(np.float32)})
            wrong += not np.array_equal(found, x @ weight)
print(json.dumps(wrong))
"""


def ask(cpu: str, code: str = ASK) -> Any:
    command = [sys.executable, run.__file__, cpu, sys.executable, "-c", code]
    return json.loads(subprocess.check_output(command, text=True))


def test_without_avx512_signed_sums_saturate_and_two_ways_are_exact() -> None:
    assert ask("avx2") == [False, 2, ["AVX2"], "AVX2", False]


@pytest.mark.skipif("AVX-512 VNNI" not in instruction_sets(), reason="needs AVX-512 VNNI")
def test_without_vnni_they_saturate_too_and_with_it_they_do_not() -> None:
    assert ask("avx512") == [False, 2, ["AVX2", "AVX-512"], "AVX512", True]
    exact, ways, sets, capability, _ = ask("all")
    assert (exact, ways, sets, capability) == (True, 3, list(instruction_sets()), "AVX512")


@pytest.mark.parametrize("cpu", ["avx2", "avx512"])
def test_signed_sums_of_weights_that_fit_in_pairs_are_exact(cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    assert ask(cpu, MULTIPLY) == 0


def test_an_instruction_that_does_not_exist_still_ends_the_process() -> None:
    code = (
        "import ctypes, mmap; m = mmap.mmap(-1, 4096, prot=7); m[:2] = b'\\x0f\\x0b'; "
        "ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **run.masked_environment("avx2")}, check=False
    )
    assert done.returncode == -4


def test_only_the_named_flags_are_hidden(tmp_path: Path) -> None:
    text = "flags\t\t: fpu avx2 avx512f avx512_vnni gfni\nbugs : avx512f\n"
    assert run._without(text, set(run.AVX512)) == "flags : fpu avx2 gfni\nbugs : avx512f\n"
    assert run._bits({"a": ("ecx", 11), "b": ("eax1", 4), "c": ("eax1", 5)}) == "0,800,0,30,0"
