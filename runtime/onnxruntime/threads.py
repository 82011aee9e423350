"""How many threads a session has where it runs: one per core that this process may use.

ONNX Runtime takes one per physical core of the machine. A container's limit or a set of allowed cores is less, and its
threads, which spin while they wait, would then stand in each other's way.

Source: Linux kernel documentation, "Control Group v2" (cpu.max) and "CFS Bandwidth Control" (cpu.cfs_quota_us).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def usual_threads() -> int | None:
    """Threads by what this process may use; None where that is the machine, as ONNX Runtime takes it."""
    cores, allowed, quota = physical_cores(), allowed_cpus(), cpu_quota()
    usable = min(cores, allowed) if quota is None else min(cores, allowed, max(1, int(quota)))
    return usable if usable < cores else None


def threads_report() -> str:
    """Threads and why, one line."""
    cores, quota = physical_cores(), cpu_quota()
    few = usual_threads()
    if few is None:
        return f"{cores}, one per core"
    limit = f"the limit of {quota:g} CPUs" if quota is not None and int(quota) <= few else "the cores that it may use"
    return f"{few} of {cores} cores, by this process's share: {limit}"


def thread_candidates() -> tuple[int, ...]:
    """What ``t5edge tune`` measures, the usual number first: one less, for the system; half; hardware threads."""
    few, cores = usual_threads(), physical_cores()
    usual, logical = (cores, allowed_cpus()) if few is None else (few, few)
    others = {usual - 1, usual // 2, logical} - {0, usual}
    return (usual, *sorted(others))


def physical_cores() -> int:
    """Cores of the machine; its hardware threads where the system does not tell them apart."""
    import psutil

    return psutil.cpu_count(logical=False) or psutil.cpu_count() or 1


def allowed_cpus() -> int:
    """Hardware threads that this process may run on."""
    import psutil

    with suppress(AttributeError, psutil.Error):  # macOS has no such call
        return len(psutil.Process().cpu_affinity())
    return psutil.cpu_count() or 1


def cpu_quota(groups: Path = GROUPS, root: Path = ROOT) -> float | None:
    """CPUs' worth of time per second that the process's control groups allow, as containers limit it; None: all."""
    found = [quota for folder in _folders(groups, root) if (quota := _quota(folder)) is not None]
    return min(found, default=None)


def _folders(groups: Path, root: Path) -> Iterator[Path]:
    """Every folder of the process's control groups that may limit it, of version 1 and 2."""
    lines: list[str] = []
    with suppress(OSError):
        lines = groups.read_text("utf-8").splitlines()
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers if controllers else root
        path = PurePosixPath(group.lstrip("/"))
        for part in (path, *path.parents):
            yield mounted / part


def _quota(folder: Path) -> float | None:
    """Of one control group."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period"))
        return None if int(quota) < 0 else int(quota) / int(period)
    return None
