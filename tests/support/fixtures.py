"""Checkpoints and bundles of the whole run: each traced and exported once, by whichever worker asks first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from support.bundles import Workshop, demo_workshop, shallow_workshop
from support.deep_models import LAYERS, Exported, deep_model
from support.encoders import Bundles, encoder_bundles
from support.exports import Exports
from support.optimum_layout import write_layout
from support.schemas import check_written
from support.sentences import Sentences, sentence_models
from support.shared import once, shared_folder
from support.tiny_models import save_tiny_model
from support.traces import shared_traces
from t5edge.bundle.manifest import Manifest
from t5edge.parity.judged_texts import LEAST_ON_BUDGET, Judging
from t5edge.pipeline import export

SHIPPED = {name: vars(Judging)[name] for name in ("least", "seconds")}


class OneThread(onnxruntime.InferenceSession):
    """A session with one thread unless told otherwise: for tiny models more only wait for each other."""

    def __init__(self, model: Any, sess_options: Any = None, *arguments: Any, **settings: Any) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        super().__init__(model, options, *arguments, **settings)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "InferenceSession", OneThread)
        yield


@pytest.fixture(scope="session", autouse=True)
def manifests_fit_the_schema() -> Iterator[None]:
    """Every ``bundle.json`` that this process writes fits the JSON Schema that the package ships."""
    write = Manifest.write

    def checked(self: Manifest, folder: Path) -> None:
        write(self, folder)
        check_written(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "write", checked)
        yield


@pytest.fixture(scope="session", autouse=True)
def brief_judging() -> Iterator[None]:
    """Verifications judge as many texts as with the smallest time budget, unless a test takes ``shipped_judging``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judging, "least", property(lambda self: LEAST_ON_BUDGET))
        patch.setattr(Judging, "seconds", property(lambda self: 0.0))
        yield


@pytest.fixture
def shipped_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shipped in SHIPPED.items():
        monkeypatch.setattr(Judging, name, shipped)


@pytest.fixture(scope="session", autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever exports in this process traces what no worker has traced before."""
    with shared_traces(shared_folder(tmp_path_factory, "traces")):
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """t5-demo's bundles in any precision."""
    return demo_workshop(shared_folder(tmp_path_factory, "demo"))


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Bundles of t5-demo's first layers in any precision."""
    return shallow_workshop(shared_folder(tmp_path_factory, "shallow"))


@pytest.fixture(scope="session")
def optimum_demo(demo: Workshop) -> Callable[[str], Path]:
    """t5-demo in a precision and optimum's layout. Tests that change it copy it."""
    return lambda name: once(demo.folder / f"{name}-optimum", lambda out: write_layout(demo, name, out))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Two tiny models that between them have every kind of block, in any precision."""
    return Exports(shared_folder(tmp_path_factory, "tiny"))


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Tiny encoders alone, in any precision; to be read only."""
    return encoder_bundles(shared_folder(tmp_path_factory, "encoders"))


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Sentences:
    """Sentence-t5-like models and their bundles, in any precision; to be read only."""
    return sentence_models(shared_folder(tmp_path_factory, "sentences"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """A tiny model of 24 layers, each with a position bias and a gated feed-forward: any kind of error can be made."""
    shared = shared_folder(tmp_path_factory, "deep")

    def make(name: str = "umt5-tiny", precision: str = "fp32", layers: int = LAYERS) -> Exported:
        deep = deep_model(name, layers)
        checkpoint = once(shared / deep.name, lambda path: save_tiny_model(deep, path, seed=3))
        bundle = once(
            shared / f"{deep.name}-{precision}",
            lambda out: export(str(checkpoint), precision, out=out, target=("onnxruntime",), no_verify=True),
        )
        return Exported(checkpoint, bundle)

    return make
