"""Sweeps end to end, through the command line, on tiny_models; one of them is poisoned."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.sweep_fakes import PROGRAM, hear_interrupts
from support.tiny_models import TinyModel, save_tiny_model, tiny_models
from support.traces import leave_traces
from t5edge.bundle.manifest import damaged_files, is_bundle
from t5edge.errors import UserError
from t5edge.progress import Silent
from t5edge.tools.sweep import local
from t5edge.tools.sweep.jobs import run_job
from t5edge.tools.sweep.options import SweepOptions
from t5edge.tools.sweep.run import plan_jobs, sweep

CLI = Path(__file__).parents[4] / "cli.py"
PLAIN = ("--target", "onnxruntime", "--no-verify", "--json")
Found = dict[str, Any]


def save_tiny_models(folder: Path, count: int) -> list[Path]:
    """Checkpoints of ``count`` tiny_models; past the ten there are, with other weights."""
    known = tiny_models()
    made = []
    for index in range(count):
        tiny = known[index % len(known)]
        name = tiny.name if index < len(known) else f"{tiny.name}-{index // len(known)}"
        made.append(save_tiny_model(TinyModel(name, tiny.family, tiny.config), folder / name, seed=index))
    return made


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def put_nan(checkpoint: Path) -> None:
    """Into the last float of the file."""
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32("nan").tobytes())


def command(checkpoints: Sequence[Path], out: Path | str, *flags: str, precision: str = "fp32 fp16") -> list[str]:
    start = [sys.executable, str(CLI), "export", "--out", str(out), "--variant", *map(str, checkpoints)]
    return [*start, "--precision", *precision.split(), *PLAIN, *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def run_sweep(
    checkpoints: Sequence[Path], out: Path | str, *flags: str, precision: str = "fp32 fp16"
) -> tuple[int, Found]:
    line = command(checkpoints, out, *flags, precision=precision)
    done = subprocess.run(line, capture_output=True, text=True, env=environment())
    assert done.returncode in (0, 1), done.stderr
    found: Found = json.loads(done.stdout)
    return done.returncode, found


def statuses(found: Found) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in found["exports"]}


def test_a_poisoned_variant_fails_alone_and_a_second_run_does_the_rest(tmp_path: Path) -> None:
    sound, broken = save_tiny_models(tmp_path / "in", 2)
    truncate(broken)
    leave_traces(tiny_models()[0].architecture)
    out = tmp_path / "out"
    code, found = run_sweep([sound, broken], out, precision="fp32")
    assert code == 1
    assert (found["exported"], found["kept"], found["failed"]) == (1, 0, 1)
    made, failed = found["exports"]
    assert (made["name"], made["status"], failed["name"]) == (f"{sound.name}-fp32", "exported", f"{broken.name}-fp32")
    assert "is truncated" in failed["error"]
    assert [path.name for path in out.iterdir()] == [made["name"]]
    assert not damaged_files(out / made["name"])
    again = options(str(sound), str(broken), target=("onnxruntime",), no_verify=True, out=str(out))
    assert [run_job(job).status for job in plan_jobs(again)] == ["kept", "failed"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twelve_variants_in_two_precisions(tmp_path: Path) -> None:
    """22 bundles, two named failures, exit 1; the second run redoes the failed, which are fixed."""
    checkpoints, out = save_tiny_models(tmp_path / "in", 12), tmp_path / "out"
    broken = checkpoints[4]
    put_nan(broken)
    code, found = run_sweep(checkpoints, out)
    assert code == 1
    assert (found["exported"], found["kept"], found["failed"]) == (22, 0, 2)
    failed = [entry for entry in found["exports"] if entry["status"] == "failed"]
    assert {entry["name"] for entry in failed} == {f"{broken.name}-fp32", f"{broken.name}-fp16"}
    assert all("NaN" in entry["error"] and entry.get("trace") is None for entry in failed)
    assert sum(is_bundle(path) for path in out.iterdir()) == len(list(out.iterdir())) == 22
    save_tiny_model(tiny_models()[4], broken, seed=4)
    code, found = run_sweep(checkpoints, out)
    assert code == 0
    assert (found["exported"], found["kept"], found["failed"]) == (2, 22, 0)
    (checkpoints[0] / "config.json").touch()
    code, found = run_sweep(checkpoints, out)
    assert (code, found["kept"]) == (0, 24)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_sweep_that_ends_half_way_leaves_whole_bundles_and_resumes(tmp_path: Path, how: signal.Signals) -> None:
    checkpoints, out = save_tiny_models(tmp_path / "in", 3), tmp_path / "out"
    driver = subprocess.Popen(
        command(checkpoints, out, "--jobs", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
        preexec_fn=hear_interrupts,
        text=True,
    )
    _wait_for_partial_after_bundle(out)
    os.killpg(driver.pid, how) if how == signal.SIGINT else driver.kill()
    _, errors = driver.communicate(timeout=60)
    if how == signal.SIGINT:
        assert driver.returncode == 130
        assert errors.strip().splitlines()[-1].endswith("interrupted; nothing half-written was left behind")
    end = time.monotonic() + 30
    while any(".partial-" in path.name for path in out.iterdir()):
        assert time.monotonic() < end, "a worker outlived its parent"
        time.sleep(0.1)
    finished = {path.name for path in out.iterdir()}
    assert 0 < len(finished) < 6
    assert not any(damaged_files(out / name) for name in finished)
    code, found = run_sweep(checkpoints, out)
    assert (code, found["kept"], found["exported"]) == (0, len(finished), 6 - len(finished))


def _wait_for_partial_after_bundle(out: Path) -> None:
    """Until one bundle is finished and another is under way."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        names = [path.name for path in out.iterdir()] if out.is_dir() else []
        if any(not name.startswith(".") for name in names) and any(".partial-" in name for name in names):
            return
        time.sleep(0.05)
    raise AssertionError("no export finished")


@pytest.mark.slow
def test_other_inputs_need_force(tmp_path: Path) -> None:
    checkpoints, out = save_tiny_models(tmp_path / "in", 1), tmp_path / "out"
    assert run_sweep(checkpoints, out)[0] == 0
    code, found = run_sweep(checkpoints, out, "--max-batch", "3")
    assert (code, found["failed"]) == (1, 2)
    assert "made from other inputs (options.max_batch); pass --force" in found["exports"][0]["error"]
    code, found = run_sweep(checkpoints, out, "--max-batch", "3", "--force")
    assert (code, found["exported"]) == (0, 2)


@pytest.mark.slow
def test_bundles_go_to_a_url(tmp_path: Path) -> None:
    checkpoints = save_tiny_models(tmp_path / "in", 1)
    code, found = run_sweep(checkpoints, f"file://{tmp_path}/out")
    assert (code, found["exported"]) == (0, 2)
    assert not any(damaged_files(path) for path in (tmp_path / "out").iterdir())
    assert run_sweep(checkpoints, f"file://{tmp_path}/out")[1]["kept"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ray_cluster_of_two_nodes_makes_the_same_bundles(tmp_path: Path) -> None:
    """Twelve variants in two precisions, one of them poisoned and one cut off, here and on the cluster."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    checkpoints = save_tiny_models(tmp_path / "in", 12)
    put_nan(checkpoints[4])
    truncate(checkpoints[1])
    local = run_sweep(checkpoints, tmp_path / "local")[1]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 8 << 30})
    try:
        cluster.add_node(num_cpus=1, memory=8 << 30)
        code, spread = run_sweep(checkpoints, tmp_path / "ray", "--ray", cluster.address)
    finally:
        cluster.shutdown()
    assert code == 1
    assert statuses(spread) == statuses(local)
    assert len({entry["node"] for entry in spread["exports"]}) == 2
    hashes = [
        {
            path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.glob("*/weights.safetensors")
        }
        for folder in (tmp_path / "local", tmp_path / "ray")
    ]
    assert len(hashes[0]) == 20
    assert hashes[0] == hashes[1]


def options(*variant: str, **others: Any) -> SweepOptions:
    return SweepOptions(variant=variant, **others)


def test_patterns_and_lists_are_expanded() -> None:
    given = ("t5-efficient-tiny-nl*", "google/t5-efficient-tiny-nl16", "t5-small", "google-t5/t5-base")
    jobs = plan_jobs(options(*given, precision=("fp16", "fp32")))
    names = [job.name for job in jobs]
    assert names[:2] == ["t5-efficient-tiny-nl12-fp16", "t5-efficient-tiny-nl12-fp32"]
    assert jobs[0].options.variant == "google/t5-efficient-tiny-nl12"
    assert names[-4:] == ["t5-small-fp16", "t5-small-fp32", "t5-base-fp16", "t5-base-fp32"]
    assert len(names) == len(set(names))
    memory = {job.name: job.memory for job in jobs}
    assert memory["t5-small-fp16"] < memory["t5-base-fp16"]
    assert all(Path(job.out).is_absolute() for job in jobs)


class Lines(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_outcomes_are_told_as_they_come_and_reported_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "CLI", PROGRAM[0])
    told = Lines()
    report = sweep(options("a", "b", "c", no_verify=True, revision="refuse", out=str(tmp_path)), told)
    assert [outcome.name for outcome in report.outcomes] == ["a-fp32", "b-fp32", "c-fp32"]
    assert report.counts() == {"exported": 0, "kept": 0, "failed": 3}
    assert [line[:6] for line in told.lines] == ["[1/3] ", "[2/3] ", "[3/3] "]
    assert {line[6:] for line in told.lines} == {f"{name}-fp32: failed, {name} cannot be had" for name in "abc"}


def test_a_sweep_that_cannot_start_says_so() -> None:
    with pytest.raises(UserError, match="'t6-\\*' matches no name"):
        plan_jobs(options("t6-*"))
    with pytest.raises(UserError, match="'fp8' is unknown"):
        plan_jobs(options("t5-small", precision=("fp16", "fp8")))
    with pytest.raises(UserError, match="'a/t5' and 'b/t5' would both become 't5-fp32'"):
        plan_jobs(options("a/t5", "b/t5"))
    with pytest.raises(UserError, match="--jobs is 0"):
        options("t5-small", jobs=0)
    with pytest.raises(UserError, match="--variant is missing"):
        options()


def test_one_name_and_one_precision_is_no_sweep(tmp_path: Path) -> None:
    assert not options("t5-small").is_sweep
    assert not options("t5-small", precision=("fp16",), out="there").is_sweep
    assert options("t5-*").is_sweep
    assert options("t5-small", "t5-base").is_sweep
    assert options("t5-small", precision=("fp16", "fp32")).is_sweep
    assert options("t5-small", ray="auto").is_sweep
    assert options("t5-small", out="s3://bucket").is_sweep
    single = options("t5-small", precision=("fp16",), out="there", no_verify=True).one("t5-small", "fp16", "there")
    assert single == replace(single, variant="t5-small", precision="fp16", out="there", no_verify=True)
