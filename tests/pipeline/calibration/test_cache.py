from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import t5edge.calibration.plan
from support.quantized_models import Model
from t5edge.bundle.precision import precision
from t5edge.calibration.cache import load_choices
from t5edge.calibration.plan import Settings, make_plan
from t5edge.calibration.texts import calibration_texts
from t5edge.errors import UserError
from t5edge.exporter.reference.texts import bundled_examples
from t5edge.options import ExportOptions
from t5edge.progress import Silent

WITHOUT_GATE = Settings(gate=False)


def plan_of(model: Model, settings: Settings = WITHOUT_GATE, texts: int = 16):  # type: ignore[no-untyped-def]
    row = precision("int8")
    chosen = calibration_texts(model.checkpoint, bundled_examples()[:texts], ExportOptions("x").limits, "test")
    return make_plan(model.checkpoint, model.graphs(row), row, chosen, Silent(), settings)


def test_the_second_run_reads_what_the_first_one_found(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan_of(plain)
    monkeypatch.setattr(t5edge.calibration.plan, "collect_inputs", lambda *_: pytest.fail("it ran again"))
    second = plan_of(plain)
    assert second.choices == first.choices
    assert first.choices


def test_the_key_follows_texts_observer_and_weights(plain: Model, outliers: Model) -> None:
    first = plan_of(plain).calibration_key
    others = [
        plan_of(plain, texts=15).calibration_key,
        plan_of(plain, replace(WITHOUT_GATE, observer="mse")).calibration_key,
        plan_of(outliers).calibration_key,
    ]
    assert len({first.key, *(other.key for other in others)}) == 4
    assert plan_of(plain).calibration_key.key == first.key


def test_an_interrupted_run_leaves_nothing_half_written(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    key = plan_of(plain).calibration_key
    key.path.unlink()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(t5edge.calibration.plan, "choose", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan_of(plain)
    assert not list(Path(key.path.parent).iterdir())


def test_a_damaged_cache_is_made_again(plain: Model) -> None:
    key = plan_of(plain).calibration_key
    key.path.write_text('{"choices": {"x": 3}}')
    assert load_choices(key) is None
    assert plan_of(plain).choices
    assert load_choices(key)


def test_an_unknown_observer_is_the_users_error(plain: Model) -> None:
    with pytest.raises(UserError, match="observer 'mean' is unknown; choose one of minmax"):
        plan_of(plain, Settings(observer="mean"))
