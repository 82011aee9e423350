"""What a benchmark's table says of the machine: CPU, cores, instruction sets, load; and workers under a CPU mask.

A mask (tests/hardware/mask_cpu) hides what a smaller CPU does not have; clock, caches and memory stay this machine's.
So a table under it is headed "masked to AVX2 on ...", and is none of an AVX2 machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from t5edge.runtime.onnxruntime.arithmetic import CPUINFO, instruction_sets

MASK = Path(__file__).parents[1] / "tests" / "hardware" / "mask_cpu" / "run.py"
MASKS = {"avx2": ("AVX2",), "avx512": ("AVX2", "AVX-512")}
"""What is left of ``INSTRUCTION_SETS``."""


def under(mask: str | None, command: list[str]) -> list[str]:
    """The command under a mask, by its own python, whose libraries are masked."""
    return command if mask is None else [command[0], str(MASK), mask, *command]


def check(mask: str | None, python: str) -> None:
    """Build what the mask needs for a python (half a minute at first); raises when the mask does not hold there."""
    if mask is None:
        return
    code = "from numpy._core._multiarray_umath import __cpu_features__ as f; print(f['X86_V4'])"
    found = subprocess.check_output(under(mask, [python, "-c", code]), text=True).split()
    if found[-1] != str("AVX-512" in MASKS[mask]):
        raise RuntimeError(f"the mask {mask} does not hold for {python}")


def describe(mask: str | None = None, cpuinfo: Path = CPUINFO) -> str:
    """One line: what the figures beside it are of."""
    mask = mask or os.environ.get("MASK_CPU_NAME")
    lines = dict(line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8").splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in lines.items()}
    name = facts.get("model name") or f"CPU part {facts.get('CPU part', 'unknown')}"
    if "cpu family" in facts:  # hypervisors leave "AMD EPYC" of the name
        name += f" (family {facts['cpu family']}, model {facts['model']})"
    sets = ", ".join(instruction_sets(cpuinfo)) or "no known instruction sets"
    machine = f"{name}, {os.cpu_count()} cores, {sets}"
    masked = "" if mask is None else f"masked to {', '.join(MASKS.get(mask, (mask,)))} on "
    return f"{masked}{machine}; load average {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    sys.exit(print(describe()))
