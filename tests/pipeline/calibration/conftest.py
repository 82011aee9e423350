"""Models shared by the tests of calibration, and a cache folder of their own."""

from __future__ import annotations

import pytest

from support.quantized_models import Model, outlier_demo, twin_model
from t5edge.bundle.precision import precision
from t5edge.exporter.checkpoint.open import open_checkpoint


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is read from or left in the user's cache."""
    monkeypatch.setenv("T5EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """t5-demo: trained, with a task."""
    return Model(open_checkpoint("t5-demo", random_weights=None, revision=None), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def trained_outliers(tmp_path_factory: pytest.TempPathFactory, demo: Model) -> Model:
    """t5-demo with strong outlier channels: decisions of a trained model, not arg-max of noise."""
    return outlier_demo(tmp_path_factory.mktemp("trained_outliers"), demo)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A gated twin with random weights."""
    return twin_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A plain, tied twin with random weights."""
    return twin_model(tmp_path_factory.mktemp("relu"), "t5-tiny-twin")


@pytest.fixture(scope="session")
def outliers(tmp_path_factory: pytest.TempPathFactory, plain: Model) -> Model:
    """The same twin, the same function, with strong outlier channels in front of the encoder's matrices."""
    model = twin_model(tmp_path_factory.mktemp("outliers"), outliers=True)
    plain.graphs(precision("fp32"))
    model.traced = plain.traced
    return model
