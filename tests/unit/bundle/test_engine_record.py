"""Records of engines: what one was built from and for, and what running it proved."""

from __future__ import annotations

import json
from dataclasses import replace

from support.manifests import engine_record
from t5edge.bundle.engine_record import EngineEntry, EngineRecord, EngineRun
from t5edge.bundle.schema import plain, read_as


def test_a_record_survives_json() -> None:
    record, problems = engine_record(weights={"w": (16, 64)}), list[str]()
    assert read_as(EngineRecord, json.loads(json.dumps(record.to_dict())), "record", problems) == record
    assert problems == []


def test_an_entry_survives_json_with_either_kind_of_run() -> None:
    for run in ("not run: no GPU", EngineRun("Test GPU", "pass", ())):
        entry, problems = EngineEntry({"encoder": engine_record()}, run), list[str]()
        assert read_as(EngineEntry, json.loads(json.dumps(plain(entry))), "entry", problems) == entry
        assert problems == []


def test_two_records_of_other_sources_differ() -> None:
    record = engine_record()
    assert record == engine_record()
    assert record != replace(record, sources={"encoder.onnx": "0"})
