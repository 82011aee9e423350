from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.sweep_fakes import PROGRAM, job
from t5edge.errors import UserError
from t5edge.tools.sweep.cluster import run_on_ray


def test_missing_ray_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 't5edge\[ray\]'"):
        list(run_on_ray([job("a", tmp_path)], "auto"))


@pytest.mark.slow
def test_no_cluster_at_the_address(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"there is no Ray cluster at '127\.0\.0\.1:1'"):
        list(run_on_ray([job("a", tmp_path)], "127.0.0.1:1"))


@pytest.mark.slow
def test_jobs_run_on_a_cluster_and_a_dead_process_or_worker_costs_its_job(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "memory": 2 << 30})
    try:
        ends = {"b": "die", "c": "orphan"}
        jobs = [job(name, tmp_path, revision=ends.get(name)) for name in "abc"]
        jobs.append(job("big", tmp_path, memory=64 << 30))
        found = {outcome.name: outcome for outcome in run_on_ray(jobs, cluster.address, PROGRAM)}
    finally:
        cluster.shutdown()
    assert {name for name, outcome in found.items() if outcome.status == "exported"} == {"a", "big"}
    assert found["a"].node
    assert "killed by SIGKILL, most likely for its memory" in str(found["b"].error)
    assert "the worker was lost (WorkerCrashedError" in str(found["c"].error)


@pytest.mark.slow
def test_leaving_early_cleans_up(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "memory": 4 << 30})
    try:
        jobs = [job("quick", tmp_path, revision="2"), job("slow", tmp_path, revision="120")]
        running = run_on_ray(jobs, cluster.address, PROGRAM)
        assert next(running).name == "quick"
        assert (tmp_path / "slow.partial").exists()
        running.close()
        assert not (tmp_path / "slow.partial").exists()
    finally:
        cluster.shutdown()
