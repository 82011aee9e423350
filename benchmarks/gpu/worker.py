"""Runs steps one after another and writes what came of each; the parent starts another when this one is gone.

python -m benchmarks.gpu.worker FOLDER DEVICE CAPABILITY STEP...     steps by name
"""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.plan import Step, rehearsed, steps
from benchmarks.gpu.results import Result, Results
from t5edge.errors import GateError, UserError

NEEDS = {"build": "export", "logits": "export", "verify": "export", "time": "export"}


def main() -> None:
    """See the module."""
    folder, device, capability, *names = sys.argv[1:]
    from benchmarks.gpu.work import Place

    place, results = Place(Path(folder), device, capability), Results(Path(folder))
    known = {step.name: step for step in (*steps(), *rehearsed())}
    for name in names:
        step = known[name]
        results.write(step, Result("running"))
        results.write(step, outcome(step, place, results))


def outcome(step: Step, place: object, results: Results) -> Result:
    """Do one step; whatever it raises is its reason."""
    from benchmarks.gpu.work import Place, Wrong, run

    assert isinstance(place, Place)
    if missing := unmet(step, results):
        return Result("not run", missing)
    try:
        facts, seconds = run(step, place)
    except Wrong as wrong:
        return Result("failed", str(wrong), facts=wrong.facts)
    except (GateError, UserError) as error:
        return Result("failed", str(error))
    except Exception as error:  # noqa: BLE001 one step must not stop the others
        traceback.print_exc()
        return Result("failed", f"{type(error).__name__}: {error}"[:2000])
    return Result("done", seconds=seconds, facts=facts)


def unmet(step: Step, results: Results) -> str:
    """Why a step makes no sense: what it works on is not there."""
    if step.kind not in NEEDS:
        return ""
    needed = [replace(step, kind="export", target="", form="")]
    if step.kind != "build" and step.target.startswith("tensorrt"):
        form = "default" if step.form == "no-cuda-graph" else step.form
        needed.append(replace(step, kind="build", form=form))
    for one in needed:
        result = results.read(one)
        if result is None or result.state != "done":
            # an engine that is wrong is still timed and verified: how far it is off is worth knowing
            if one.kind == "build" and result is not None and "are wrong" in result.reason:
                continue
            return f"{one.name} is not there"
    return ""


if __name__ == "__main__":
    main()
