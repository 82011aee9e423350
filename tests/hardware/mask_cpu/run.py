"""Run a command as on an x86 CPU without AVX-512 or without VNNI, at native speed, on one that has them.

    python tests/hardware/mask_cpu/run.py avx2 pytest
    python tests/hardware/mask_cpu/run.py avx512 t5edge doctor

ONNX Runtime and OpenVINO pick their kernels by the CPUID instruction. In a copy of each, every CPUID is made an
instruction that does not exist, and ``mask_cpu.c``, loaded before, answers it as the smaller CPU would. numpy, torch,
OpenBLAS, oneDNN, MKL and CTranslate2 take the same from the environment. Caches, clock and memory, and libraries not
named here, stay this CPU's.

Linux on x86-64, with gcc and objdump. What is built stays in build/mask_cpu.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "build" / "mask_cpu"
CPUINFO = Path("/proc/cpuinfo")
NEEDED = ("gcc", "objdump")
LIBRARIES = {
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
    "openvino": ("libs/libopenvino.so.*", "libs/libopenvino_intel_cpu_plugin.so"),
}
"""What asks for the CPU, by package; of those that are installed."""
CPUID, MARK = b"\x0f\xa2", b"\x0e\xa2"
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\tcpuid", re.MULTILINE)
IN_STEP, LONGEST = 4096, 16
"""Bytes in front of an instruction that are read with it, and behind its begin: no instruction is longer."""
AMX = {"amx_bf16": ("edx", 22), "amx_tile": ("edx", 24), "amx_int8": ("edx", 25), "amx_fp16": ("eax1", 21)}
VNNI = {
    **AMX,
    "avx512_vnni": ("ecx", 11),
    "avx_vnni": ("eax1", 4),
    "avx512_bf16": ("eax1", 5),
    "avx_ifma": ("eax1", 23),
    "avx_vnni_int8": ("edx1", 4),
    "avx_ne_convert": ("edx1", 5),
    "avx_vnni_int16": ("edx1", 10),
    "avx10": ("edx1", 19),
    "avx512_fp16": ("edx", 23),
}
AVX512 = {
    **VNNI,
    "avx512f": ("ebx", 16),
    "avx512dq": ("ebx", 17),
    "avx512ifma": ("ebx", 21),
    "avx512cd": ("ebx", 28),
    "avx512bw": ("ebx", 30),
    "avx512vl": ("ebx", 31),
    "avx512vbmi": ("ecx", 1),
    "avx512_vbmi2": ("ecx", 6),
    "avx512_bitalg": ("ecx", 12),
    "avx512_vpopcntdq": ("ecx", 14),
    "avx512_vp2intersect": ("edx", 8),
}
"""Linux's names of features, each with its register and bit of leaf 7 (AMD's and Intel's manuals of CPUID)."""


class Cpu(NamedTuple):
    """``hidden`` features, and the environment in which other libraries do without them."""

    hidden: dict[str, tuple[str, int]]
    environment: dict[str, str]


CPUS = {
    "avx2": Cpu(
        AVX512,
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "CT2_FORCE_CPU_ISA": "AVX2",
            "NPY_DISABLE_CPU_FEATURES": "X86_V4,AVX512_ICL,AVX512_SPR",
            "OPENBLAS_CORETYPE": "Haswell",
        },
    ),
    "avx512": Cpu(VNNI, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"}),
    "all": Cpu({}, {}),
}
"""As Haswell to Zen 3; as Skylake-X; and this CPU itself, through the same copy of ONNX Runtime."""


def masked_environment(name: str) -> dict[str, str]:
    """The variables under which a process takes this CPU for ``name``; builds what is missing (5 s)."""
    packages = [package for package in LIBRARIES if importlib.util.find_spec(package)]
    versions = "-".join(importlib.metadata.version(package) for package in packages)
    cpu, folder = CPUS[name], BUILD / versions
    site, library = folder / "site", folder / "mask_cpu.so"
    if not library.exists():
        for package in packages:
            _patched_copy(package, site)
        subprocess.run(
            ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, HERE / "mask_cpu.c", "-ldl"], check=True
        )
    info = folder / f"cpuinfo.{name}"
    info.write_text(_without(CPUINFO.read_text(encoding="utf-8"), set(cpu.hidden)), encoding="utf-8")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **cpu.environment,
        "LD_PRELOAD": str(library),
        "MASK_CPU_NAME": name,
        "MASK_CPU_LEAF7": _bits(cpu.hidden),
        "MASK_CPU_INFO": str(info),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _patched_copy(package: str, site: Path) -> None:
    (spec,) = importlib.util.find_spec(package).submodule_search_locations
    shutil.rmtree(site / package, ignore_errors=True)
    shutil.copytree(spec, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in LIBRARIES[package]:
        for library in (site / package).glob(pattern):
            print(f"{library.name}: {_patch(library)} cpuid instructions replaced", file=sys.stderr)


def _patch(library: Path) -> int:
    """Mark every CPUID of the library's code; returns how many there are."""
    data = bytearray(library.read_bytes())
    headers = subprocess.check_output(["objdump", "-h", "-j", ".text", library], text=True)
    (header,) = re.findall(r"\.text +(\w+) +(\w+) +\w+ +(\w+) ", headers)
    size, address, offset = (int(number, 16) for number in header)
    bytes_alike = [found.start() for found in re.finditer(re.escape(CPUID), data[offset : offset + size])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sure = pool.map(lambda place: _is_cpuid(library, address, address + place), bytes_alike)
        places = [offset + place for place, found in zip(bytes_alike, sure, strict=True) if found]
    for place in places:
        data[place : place + 2] = MARK
    library.write_bytes(data)
    return len(places)


def _is_cpuid(library: Path, begin: int, place: int) -> bool:
    """Whether the bytes of a CPUID at ``place`` are one, and no part of another instruction.

    Only what is around is read, which takes a fifth of the time of all: x86 code that is read from between two
    instructions falls into step after a few.
    """
    span = [f"--start-address={max(begin, place - IN_STEP)}", f"--stop-address={place + LONGEST}"]
    code = subprocess.check_output(["objdump", "-d", "-j", ".text", "--no-show-raw-insn", *span, library], text=True)
    return f"{place:x}" in INSTRUCTION.findall(code)


def _bits(hidden: dict[str, tuple[str, int]]) -> str:
    registers = dict.fromkeys(("ebx", "ecx", "edx", "eax1", "edx1"), 0)
    for register, bit in hidden.values():
        registers[register] |= 1 << bit
    return ",".join(f"{bits:x}" for bits in registers.values())


def _without(cpuinfo: str, hidden: set[str]) -> str:
    lines = cpuinfo.splitlines(keepends=True)
    return "".join(
        " ".join(word for word in line.split() if word not in hidden) + "\n" if line.startswith("flags") else line
        for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cpu", choices=CPUS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    os.environ.update(masked_environment(given.cpu))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(given.command, env={**os.environ, "PATH": path}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
