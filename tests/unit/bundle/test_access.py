"""The manifest is typed everywhere, and code asks for a backend's capability instead of comparing its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ROOMS = ("bundle", "runtime", "engines", "kernels", "exporter", "calibration", "parity", "tools", "commands")
AS_A_DICT = re.compile(r"""manifest(\.\w+)?(\[["']|\.get\()""")
PARTS = ("ports", "files", "engines", "costs", "hashes", "generation", "options", "quantization", "tools")
"""Parts that are mappings by nature: by graph, file, target, or as somebody else named the keys."""
BY_NAME = re.compile(
    r"""(target|backend|name) (==|!=|in|not in) (["'(]\W*(onnxruntime|tensorrt)|\w*NAME\b|FLAVORS)"""
    r"""|startswith\(["'](onnxruntime|tensorrt)"""
)


def sources(*more: str) -> Iterator[Path]:
    for room in (*ROOMS, *more):
        yield from sorted((ROOT / room).rglob("*.py"))
    yield from (ROOT / f"{name}.py" for name in ("pipeline", "options", "cli"))


def found(pattern: re.Pattern[str], *more: str) -> list[str]:
    lines = []
    for path in sources(*more):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = pattern.search(line)
            if match and not any(f"manifest.{part}" in match.group() for part in PARTS):
                lines.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return [line for line in lines if not line.startswith("bundle/manifest.py")]


def test_nothing_reads_the_manifest_as_a_dict() -> None:
    assert found(AS_A_DICT, "tests/support") == []


def test_no_target_is_told_by_its_name() -> None:
    assert found(BY_NAME) == []


@pytest.mark.parametrize("line", ['manifest["limits"]', "manifest.get('speed')", 'manifest.limits["max_batch"]'])
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert AS_A_DICT.search(line)


@pytest.mark.parametrize(
    "line", ['if target == "onnxruntime"', 'target.startswith("onnxruntime")', "if target in FLAVORS", "target != NAME"]
)
def test_so_does_the_other(line: str) -> None:
    assert BY_NAME.search(line)
