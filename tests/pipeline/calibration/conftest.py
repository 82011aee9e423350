"""Models shared by the tests of calibration."""

from __future__ import annotations

import pytest

from support.bundles import save_shallow_demo
from support.quantized_models import Model, outlier_demo, tiny_model
from t5edge.exporter.checkpoint.open import open_checkpoint


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """t5-demo: trained, with a task."""
    return Model(open_checkpoint("t5-demo", random_weights=None, revision=None), tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Its first layers: for engines, which take their time by the layer."""
    folder = tmp_path_factory.mktemp("shallow")
    saved = save_shallow_demo(folder / "checkpoint")
    return Model(open_checkpoint(str(saved), random_weights=None, revision=None), folder)


@pytest.fixture(scope="session")
def trained_outliers(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """t5-demo with strong outlier channels: decisions of a trained model, not arg-max of noise."""
    return outlier_demo(tmp_path_factory.mktemp("trained_outliers"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A gated model with random weights."""
    return tiny_model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def relu(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A plain, tied model with random weights."""
    return tiny_model(tmp_path_factory.mktemp("relu"), "t5-tiny")


@pytest.fixture(scope="session")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same model, the same function, with strong outlier channels in front of the encoder's matrices."""
    return tiny_model(tmp_path_factory.mktemp("outliers"), outliers=True)
