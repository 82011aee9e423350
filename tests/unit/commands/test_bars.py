from __future__ import annotations

import io
import re
import sys

import pytest
from rich.console import Console

from t5edge.commands.bars import Bars, Lines, announce_torch, watcher
from t5edge.progress import Silent


def test_lines_say_what_a_stage_does_and_how_long_it_took() -> None:
    out = io.StringIO()
    lines = watcher(Console(file=out, width=40), verbose=True)
    assert isinstance(lines, Lines)
    with lines.stage("weights", 3_200_000, "bytes") as stage:
        stage.advance(3_200_000)
        stage.note("a [note]")
    found = out.getvalue().splitlines()
    assert len(found) == 3
    assert all(re.match(r" +\d+\.\d s  weights", line) for line in found)
    assert found[0].endswith("weights: every tensor of the checkpoint, cast and scaled, into weights.safetensors")
    assert found[1].endswith("weights: a [note]")
    assert re.search(r"done, 3\.2 MB, \d+\.\d s; \d+\.\d\d GiB of memory in use$", found[2])


def test_quiet_says_nothing_and_neither_draws_bars() -> None:
    console = Console(file=io.StringIO())
    assert isinstance(watcher(console, quiet=True), Silent)
    assert isinstance(watcher(console), Bars)


def test_torch_is_announced_where_it_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    announce_torch(Bars(Console(file=out)), "t5-demo in fp16")
    assert out.getvalue() == "t5-demo in fp16: loading torch and transformers\n"
    monkeypatch.setitem(sys.modules, "torch", sys)
    announce_torch(Bars(Console(file=out)), "t5-demo in fp16")
    assert out.getvalue().count("\n") == 1
