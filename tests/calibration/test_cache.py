from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import calibration.plan
from calibration.cache import load_choices
from calibration.plan import Settings, make_plan
from calibration.texts import calibration_texts
from exporter.errors import UserError
from exporter.options import ExportOptions
from exporter.precision import precision
from exporter.progress import Silent
from exporter.texts import bundled_examples
from tests.calibration.models import Model

WITHOUT_GATE = Settings(gate=False)


def plan_of(model: Model, settings: Settings = WITHOUT_GATE, texts: int = 16):  # type: ignore[no-untyped-def]
    row = precision("int8")
    chosen = calibration_texts(model.checkpoint, bundled_examples()[:texts], ExportOptions("x").limits, "test")
    return make_plan(model.checkpoint, model.graphs(row), row, chosen, Silent(), settings)


def test_the_second_run_reads_what_the_first_one_found(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan_of(plain)
    monkeypatch.setattr(calibration.plan, "collect_inputs", lambda *_: pytest.fail("it ran again"))
    second = plan_of(plain)
    assert second.choices == first.choices
    assert first.choices


def test_the_key_follows_texts_observer_and_weights(plain: Model, outliers: Model) -> None:
    first = plan_of(plain).recipe
    others = [
        plan_of(plain, texts=15).recipe,
        plan_of(plain, replace(WITHOUT_GATE, observer="mse")).recipe,
        plan_of(outliers).recipe,
    ]
    assert len({first.key, *(recipe.key for recipe in others)}) == 4
    assert plan_of(plain).recipe.key == first.key


def test_an_interrupted_run_leaves_nothing_half_written(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = plan_of(plain).recipe
    recipe.path.unlink()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(calibration.plan, "choose", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan_of(plain)
    assert not list(Path(recipe.path.parent).iterdir())


def test_a_damaged_cache_is_made_again(plain: Model) -> None:
    recipe = plan_of(plain).recipe
    recipe.path.write_text('{"choices": {"x": 3}}')
    assert load_choices(recipe) is None
    assert plan_of(plain).choices
    assert load_choices(recipe)


def test_an_unknown_observer_is_the_users_error(plain: Model) -> None:
    with pytest.raises(UserError, match="observer 'mean' is unknown; choose one of minmax"):
        plan_of(plain, Settings(observer="mean"))
