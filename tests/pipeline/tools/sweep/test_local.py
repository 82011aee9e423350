from __future__ import annotations

import os
import signal as signals
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.sweep_fakes import GIB, PROGRAM, hear_interrupts, job
from t5edge.tools.sweep import local
from t5edge.tools.sweep.jobs import Job, Outcome
from t5edge.tools.sweep.local import run_here

DRIVER = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from t5edge.tools.sweep.local import run_here
from support.sweep_fakes import PROGRAM, job
jobs = [job(name, Path(sys.argv[1]), revision="60") for name in "ab"]
list(run_here(jobs, 2, 4 << 30, 1, PROGRAM))
"""


def outcomes(jobs: list[Job], workers: int = 2, budget: int = 4 * GIB) -> dict[str, Outcome]:
    return {found.name: found for found in run_here(jobs, workers, budget, 1, PROGRAM)}


def moments(folder: Path, ending: str) -> dict[str, float]:
    return {path.stem: float(path.read_text().split()[0]) for path in folder.glob(f"*.{ending}")}


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def wait_for(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_a_process_that_dies_costs_its_job_only(tmp_path: Path) -> None:
    ends = {"b": "die", "c": "leave", "d": "crash", "e": "refuse"}
    found = outcomes([job(name, tmp_path, revision=ends.get(name)) for name in "abcdef"])
    assert {name for name, outcome in found.items() if outcome.status == "exported"} == set("af")
    assert {name: outcome.error for name, outcome in found.items() if outcome.error} == {
        "b": "killed by SIGKILL, most likely for its memory; try --jobs 1, or a machine with more memory.",
        "c": "ended with exit code 7 (t5edge export: c cannot be had); run this export on its own to see why.",
        "d": "ended by SIGABRT; run this export on its own to see why.",
        "e": "e cannot be had",
    }


def test_jobs_wait_for_memory(tmp_path: Path) -> None:
    """Two of 3 GiB never run together in 4 GiB; the small one overtakes; one of 9 GiB runs alone."""
    sizes = {"big": 3, "other": 3, "small": 1, "huge": 9}
    jobs = [job(name, tmp_path, memory=size * GIB, revision="0.3") for name, size in sizes.items()]
    assert set(outcomes(jobs, workers=4)) == set(sizes)
    assert (tmp_path / "big.begin").read_text().split()[2] == "1", "threads"
    begin, end = moments(tmp_path, "begin"), moments(tmp_path, "end")
    for name, start in begin.items():
        together = [other for other in begin if begin[other] <= start < end[other]]
        assert sum(sizes[other] for other in together) <= 4 or together == ["huge"], name
    assert begin["small"] < begin["other"]


@pytest.mark.parametrize("blocked", [set(), {signals.SIGINT}])
def test_leaving_early_ends_the_processes(tmp_path: Path, blocked: set[signals.Signals]) -> None:
    """Also where the sweep passes Ctrl-C on blocked, as in a worker of Ray's."""
    jobs = [job("quick", tmp_path), job("slow", tmp_path, revision="60")]
    running = run_here(jobs, 2, 4 * GIB, 1, PROGRAM)
    mask = signals.pthread_sigmask(signals.SIG_BLOCK, blocked)
    try:
        assert next(running).name == "quick"
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, mask)
    wait_for((tmp_path / "slow.partial").exists)
    begin = time.monotonic()
    running.close()
    assert time.monotonic() - begin < 10
    assert not (tmp_path / "slow.partial").exists()
    assert not (tmp_path / "slow.end").exists()


def test_a_process_that_does_not_hear_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.2)
    running = run_here([job("quick", tmp_path), job("deaf", tmp_path, revision="stay")], 2, 4 * GIB, 1, PROGRAM)
    assert next(running).name == "quick"
    wait_for((tmp_path / "deaf.begin").exists)
    running.close()
    assert not alive(int((tmp_path / "deaf.begin").read_text().split()[1]))


@pytest.mark.parametrize("signal", ["KILL", "TERM", "INT"])
def test_processes_end_with_a_sweep_that_is_killed_or_interrupted(tmp_path: Path, signal: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(Path(__file__).parents[3])],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    wait_for(lambda: len(list(tmp_path.glob("*.partial"))) == 2)
    processes = [int(path.read_text().split()[1]) for path in tmp_path.glob("*.begin")]
    if signal == "INT":
        os.killpg(driver.pid, 2)  # as Ctrl-C in a terminal: the whole group
    else:
        driver.send_signal(getattr(signals, f"SIG{signal}"))
    driver.wait(20)
    wait_for(lambda: not any(alive(process) for process in processes))
    assert not list(tmp_path.glob("*.partial"))
