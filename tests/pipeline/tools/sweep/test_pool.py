from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.sweep_fakes import GIB, hear_interrupts, job, run
from t5edge.tools.sweep.jobs import Job, Outcome
from t5edge.tools.sweep.pool import run_in_processes

DRIVER = """
import sys
from pathlib import Path
sys.path.append(sys.argv[2])
from t5edge.tools.sweep.pool import run_in_processes
from support.sweep_fakes import job, run
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    jobs = [job(name, folder, revision="60") for name in "ab"]
    list(run_in_processes(jobs, run, 2, 4 << 30, 1))
"""


def outcomes(jobs: list[Job], workers: int = 2, budget: int = 4 * GIB) -> dict[str, Outcome]:
    return {found.name: found for found in run_in_processes(jobs, run, workers, budget, threads=1)}


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


def test_a_worker_that_dies_costs_its_job_only(tmp_path: Path) -> None:
    jobs = [job("a", tmp_path), job("b", tmp_path, revision="die"), job("c", tmp_path, revision="leave")]
    found = outcomes([*jobs, *(job(name, tmp_path) for name in "defg")])
    assert {name for name, outcome in found.items() if outcome.status == "exported"} == set("adefg")
    assert "killed, most likely for its memory" in str(found["b"].error)
    assert "exit code 7" in str(found["c"].error)


def test_jobs_wait_for_memory(tmp_path: Path) -> None:
    """Two of 3 GiB never run together in 4 GiB; the small one overtakes; one of 9 GiB runs alone."""
    sizes = {"big": 3, "other": 3, "small": 1, "huge": 9}
    jobs = [job(name, tmp_path, memory=size * GIB, revision="0.3") for name, size in sizes.items()]
    assert set(outcomes(jobs, workers=4)) == set(sizes)
    begin, end = moments(tmp_path, "begin"), moments(tmp_path, "end")
    for name, start in begin.items():
        together = [other for other in begin if begin[other] <= start < end[other]]
        assert sum(sizes[other] for other in together) <= 4 or together == ["huge"], name
    assert begin["small"] < begin["other"]


def test_leaving_early_stops_the_workers(tmp_path: Path) -> None:
    jobs = [job("quick", tmp_path), job("slow", tmp_path, revision="60")]
    running = run_in_processes(jobs, run, 2, 4 * GIB, threads=1)
    assert next(running).name == "quick"
    wait_for((tmp_path / "slow.partial").exists)
    begin = time.monotonic()
    running.close()
    assert time.monotonic() - begin < 10
    assert not (tmp_path / "slow.partial").exists()
    assert not (tmp_path / "slow.end").exists()


@pytest.mark.parametrize("signal", ["KILL", "INT"])
def test_workers_end_with_a_driver_that_is_killed_or_interrupted(tmp_path: Path, signal: str) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(Path(__file__).parents[3])],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    wait_for(lambda: len(list(tmp_path.glob("*.partial"))) == 2)
    workers = [int(path.read_text().split()[1]) for path in tmp_path.glob("*.begin")]
    if signal == "KILL":
        driver.kill()
    else:
        os.killpg(driver.pid, 2)  # as Ctrl-C in a terminal: the whole group
    driver.wait(20)
    wait_for(lambda: not any(alive(worker) for worker in workers))
    assert not list(tmp_path.glob("*.partial"))
