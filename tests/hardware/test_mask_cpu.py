"""The CPUs that mask_cpu pretends: ONNX Runtime's sums of int8 saturate exactly where they do on the real ones."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

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


def ask(cpu: str) -> list[object]:
    command = [sys.executable, run.__file__, cpu, sys.executable, "-c", ASK]
    return json.loads(subprocess.check_output(command, text=True))


def test_without_avx512_signed_sums_saturate_and_two_ways_are_exact() -> None:
    assert ask("avx2") == [False, 2, ["AVX2"], "AVX2", False]


@pytest.mark.skipif("AVX-512 VNNI" not in instruction_sets(), reason="needs AVX-512 VNNI")
def test_without_vnni_they_saturate_too_and_with_it_they_do_not() -> None:
    assert ask("avx512") == [False, 2, ["AVX2", "AVX-512"], "AVX512", True]
    exact, ways, sets, capability, _ = ask("all")
    assert (exact, ways, sets, capability) == (True, 3, list(instruction_sets()), "AVX512")


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
