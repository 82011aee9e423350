"""Traced blocks kept in a folder, for every process of a test run: tracing takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx_ir as ir
import pytest

from support.shared import once
from t5edge.bundle.architecture import Architecture
from t5edge.exporter.graph import trace, trace_cache
from t5edge.exporter.graph.generic import generic
from t5edge.exporter.graph.trace_cache import DEPENDS_ON, from_bytes, to_bytes
from t5edge.kernels.block import BlockKind


@contextmanager
def shared_traces(folder: Path) -> Iterator[None]:
    """Let every export trace only what no process of this test run has traced; inside another one, what that does."""
    if getattr(trace.cached_trace, "__module__", "") == __name__:  # tests of two folders in one process
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "cached_trace", kept_in(folder))
        yield


def leave_traces(architecture: Architecture) -> None:
    """Put its blocks where a process that a test starts finds them: into the cache of that test's user."""
    sizeless = generic(architecture)

    def leave(kind: BlockKind) -> None:
        known = partial(trace.cached_trace, sizeless, kind, partial(trace._traced, sizeless, kind))
        trace_cache.cached_trace(sizeless, kind, known)

    for kind in trace.BLOCK_KINDS:
        leave(kind)


def kept_in(folder: Path) -> Callable[[Architecture, BlockKind, Callable[[], ir.Model]], ir.Model]:
    """``cached_trace`` in ``folder``, where each block is traced once by all processes that share it, and read once."""
    read: dict[Path, ir.Model] = {}

    def cached_trace(architecture: Architecture, kind: BlockKind, tracer: Callable[[], ir.Model]) -> ir.Model:
        facts = repr((kind, *(getattr(architecture, name) for name in DEPENDS_ON)))
        path = folder / hashlib.sha256(facts.encode()).hexdigest()[:16]
        if path not in read:
            once(path, lambda file: file.write_bytes(to_bytes(tracer())))
            read[path] = from_bytes(path.read_bytes())
        return read[path].clone()

    return cached_trace
