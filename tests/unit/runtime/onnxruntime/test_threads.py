"""Threads by what a process may use: control groups of both versions, allowed cores, and what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from t5edge.runtime.onnxruntime import threads


def groups(folder: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A process's list of control groups and their root, with ``files`` below it."""
    listed = folder / "cgroup"
    listed.write_text(lines, "utf-8")
    for name, text in files.items():
        (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "root" / name).write_text(text, "ascii")
    return listed, folder / "root"


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 50000\n", "cpu.max": "max 1\n"}, 4.0),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "200000 50000\n"}, 1.0),
        (
            "3:memory:/m\n2:cpu,cpuacct:/box\n",
            {"cpu,cpuacct/box/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("1:cpuset:/\n", {"cpuset/cpu.max": "100000 100000\n"}, None),
        ("0::/\n", {"cpu.max": "of another form\n"}, None),
    ],
)
def test_a_containers_limit_is_read(tmp_path: Path, lines: str, files: dict[str, str], expected: float | None) -> None:
    assert threads.cpu_quota(*groups(tmp_path, lines, files)) == expected


def test_a_system_without_control_groups_limits_nothing(tmp_path: Path) -> None:
    assert threads.cpu_quota(tmp_path / "none", tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "allowed", "quota", "usual", "candidates", "why"),
    [
        (8, 8, None, None, (8, 4, 7), "8, one per core"),
        (8, 16, None, None, (8, 4, 7, 16), "8, one per core"),
        (8, 16, 2.5, 2, (2, 1), "2 of 8 cores, by this process's share: the limit of 2.5 CPUs"),
        (8, 16, 0.5, 1, (1,), "1 of 8 cores, by this process's share: the limit of 0.5 CPUs"),
        (8, 3, 6.0, 3, (3, 1, 2), "3 of 8 cores, by this process's share: the cores that it may use"),
        (2, 2, 16.0, None, (2, 1), "2, one per core"),
        (1, 1, None, None, (1,), "1, one per core"),
    ],
)
def test_threads_are_those_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    allowed: int,
    quota: float | None,
    usual: int | None,
    candidates: tuple[int, ...],
    why: str,
) -> None:
    monkeypatch.setattr(threads, "physical_cores", lambda: cores)
    monkeypatch.setattr(threads, "allowed_cpus", lambda: allowed)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert threads.usual_threads() == usual
    assert threads.thread_candidates() == candidates
    assert threads.threads_report() == why


def test_this_machine_has_a_core() -> None:
    assert threads.physical_cores() >= 1
    assert threads.allowed_cpus() >= 1
    assert threads.thread_candidates()[0] >= 1
