from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.manifests import engine_record, tiny_manifest
from t5edge.bundle.manifest import Manifest
from t5edge.errors import UserError
from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT
from t5edge.runtime.tensorrt.records import (
    engine_path,
    graphs_of,
    read_record,
    record_path,
    runtime_cache,
    timing_cache,
    write_plan,
)


class FakeModule:
    __version__ = "9.9.9"


@pytest.mark.parametrize(
    ("cache", "graphs"),
    [
        ("concat", ("encoder", "decoder")),
        ("in-place", ("encoder", "decoder_in_place")),
        ("both", ("encoder", "decoder", "decoder_in_place")),
    ],
)
def test_the_cache_says_which_decoders_are_built(cache: str, graphs: tuple[str, ...]) -> None:
    assert graphs_of(tiny_manifest(cache=cache)) == graphs


def test_a_manifest_without_the_field_has_the_growing_cache() -> None:
    data = {key: value for key, value in tiny_manifest().to_dict().items() if key != "cache"}
    assert graphs_of(Manifest.from_dict(data)) == ("encoder", "decoder")


def test_engines_lie_by_target_and_compute_capability(tmp_path: Path) -> None:
    path = engine_path(tmp_path, "tensorrt-rtx", "8.6", "decoder")
    assert path.relative_to(tmp_path).as_posix() == "engines/tensorrt-rtx/8.6/decoder.engine"


def test_a_record_counts_only_with_its_whole_engine(tmp_path: Path) -> None:
    engine = engine_path(tmp_path, "tensorrt", "8.6", "encoder")
    assert read_record(engine) is None
    write_plan(engine, memoryview(b"plan"))
    assert read_record(engine) is None
    record_path(engine).write_text(json.dumps({"bytes": 4}))
    assert read_record(engine) is None
    record = engine_record(bytes=4)
    record_path(engine).write_text(json.dumps(record.to_dict()))
    assert read_record(engine) == record
    engine.write_bytes(b"pl")
    assert read_record(engine) is None
    record_path(engine).write_text("{")
    assert read_record(engine) is None


def test_a_plan_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    engine = engine_path(tmp_path, "tensorrt", "8.6", "encoder")
    (tmp_path / "engines").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"writing .* failed"):
        write_plan(engine, memoryview(b"plan"))
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


def test_each_flavor_has_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    full, rtx = (TensorRT(FLAVORS[name], FakeModule) for name in ("tensorrt", "tensorrt-rtx"))
    assert timing_cache(full, "8.7") == tmp_path / "t5edge" / "timing-tensorrt-9.9.9-8.7.cache"
    assert timing_cache(rtx, "8.6") is None
    assert runtime_cache(full, engine_record(sha256="a" * 64)) is None
    kernels = runtime_cache(rtx, engine_record(sha256="ab" * 32))
    assert kernels == tmp_path / "t5edge" / "runtime-9.9.9-abababababababab.cache"
