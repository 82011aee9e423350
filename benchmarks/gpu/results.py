"""One JSON file per step, written in one rename: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.plan import Step

State = Literal["running", "done", "failed", "not run"]


@dataclass(frozen=True)
class Result:
    """What came of a step. ``reason``: why it failed or was not run; ``facts``: its figures, JSON-able."""

    state: State
    reason: str = ""
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


class Results:
    """The results below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "steps"
        self.folder.mkdir(parents=True, exist_ok=True)

    def read(self, step: Step) -> Result | None:
        """None where nothing is known yet."""
        try:
            return Result(**json.loads(self._path(step).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, step: Step, result: Result) -> None:
        path = self._path(step)
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def open_steps(self, steps: Iterable[Step]) -> list[Step]:
        """Those without a final result."""
        known = {step: self.read(step) for step in steps}
        return [step for step, result in known.items() if result is None or result.state == "running"]

    def forget_not_run(self, steps: Iterable[Step]) -> None:
        """Let those be tried again that could not be run."""
        for step in steps:
            result = self.read(step)
            if result is not None and result.state == "not run":
                self._path(step).unlink()

    def _path(self, step: Step) -> Path:
        return self.folder / f"{step.name}.json"
