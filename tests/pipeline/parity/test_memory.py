from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.tiny_models import find_tiny_model, save_tiny_model
from t5edge.bundle.precision import precision
from t5edge.exporter.family.variants import find_variant
from t5edge.parity import memory


def test_estimates_follow_the_architecture() -> None:
    small, huge = (find_variant(name).architecture for name in ("t5-small", "t5-11b"))
    longer = replace(small, vocab_size=small.vocab_size + 1000)
    more = memory.peak_bytes(longer, verify=False) - memory.peak_bytes(small, verify=False)
    assert more == 2 * 4 * 1000 * 512, "the largest tensor twice in float32"
    assert 2**30 < memory.peak_bytes(small, verify=False) < 2 * 2**30
    assert memory.peak_bytes(huge, verify=False) < 2.1 * 2**30
    assert memory.peak_bytes(huge, verify=True) > 3 * 4 * huge.parameters


def test_folders_are_read_and_the_unknown_counts_as_large(tmp_path: Path) -> None:
    tiny = find_tiny_model("ul2-tiny")
    assert memory.known_architecture(str(save_tiny_model(tiny, tmp_path / "byt5", seed=0))).d_kv == 256
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    large = find_variant("t5-large").architecture
    assert memory.known_architecture(str(tmp_path / "broken")) == large
    assert memory.known_architecture("someone/private-t5") == large
    assert memory.known_architecture("byt5-small").vocab_size == 384


def test_float32_bundles_stay_on_disk_and_others_need_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 GiB free."""
    monkeypatch.setattr(memory, "free_bytes", lambda: 20 * 2**30)
    large, huge = (find_variant(name).architecture for name in ("t5-large", "t5-11b"))
    names = ("fp32", "fp16", "int8-weight", "int4-weight")
    assert [memory.bundle_fits(large, precision(name)) for name in names] == [True] * 4
    assert [memory.bundle_fits(huge, precision(name)) for name in names] == [True, False, False, True]


def test_some_memory_is_free() -> None:
    assert 2**26 < memory.free_bytes() < 2**46
