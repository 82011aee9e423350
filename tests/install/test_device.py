"""The device side in fresh environments, under every Python found here: small, complete, and clear about the rest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.environments import ROOT, Environment, find_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BUNDLES = ROOT / "tests" / "bundles-0.1"
TEXT_BUNDLE, FLOAT_BUNDLE = BUNDLES / "byt5-int8", BUNDLES / "efficient-kv16-fp32"
EXPORTER = {"torch", "transformers", "onnx", "onnx-ir", "onnxscript", "safetensors"}
LOGITS = """
import sys, numpy as np, t5edge
asked = np.load(sys.argv[2])
model = t5edge.load(sys.argv[1])
print(abs(model.logits(asked["ids"], asked["mask"], asked["targets"]) - asked["logits"]).max())
"""
FIRST_TOKEN = """
import sys, time
start = time.perf_counter()
import t5edge
t5edge.load(sys.argv[1]).generate_text(["hello"], max_new_tokens=1)
print(time.perf_counter() - start)
"""


def make(wheel: Path, folder: Path, version: str, extra: str) -> Environment:
    python = find_python(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed here")
    environment = Environment.make(folder / "env", python)
    environment.install(f"{wheel}[{extra}]")
    return environment


@pytest.fixture(scope="module", params=["3.10", "3.11", "3.12", "3.13", "3.14"])
def device(
    wheel: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("device")
    yield make(wheel, folder, request.param, "onnxruntime")
    shutil.rmtree(folder)


@pytest.fixture
def old(device: Environment) -> bool:
    """Whether this is the Python whose last onnxruntime computes no quantized bundle."""
    return device.packages()["onnxruntime"].startswith("1.23.")


def test_nothing_of_the_exporter_is_installed(device: Environment) -> None:
    packages = device.packages()
    assert not EXPORTER & packages.keys()
    assert device.shared_names() == {}
    print(f"\nonnxruntime {packages['onnxruntime']}, site-packages {device.megabytes():.0f} MB")


def test_a_float_bundle_gives_the_stored_logits(device: Environment) -> None:
    assert float(device.run(LOGITS, FLOAT_BUNDLE, FLOAT_BUNDLE.with_suffix(".npz"))) < 1e-5


def test_text_in_text_out(device: Environment, old: bool) -> None:
    done = device.t5edge("generate", TEXT_BUNDLE, "--num-beams", "2", "hello", "--max-new-tokens", "4")
    if old:
        assert done.returncode == 2
        assert "pip install 'onnxruntime>=1.27'" in done.stderr
        return
    assert (done.returncode, done.stderr) == (0, "")
    print(f"\nfirst token after {float(device.run(FIRST_TOKEN, TEXT_BUNDLE)):.2f} s, imports included")


@pytest.mark.parametrize(
    "command",
    [
        ("bench", FLOAT_BUNDLE, "--quick"),
        ("inspect", FLOAT_BUNDLE),
        ("inspect", TEXT_BUNDLE, "--json"),
        ("variants",),
        ("doctor",),
        ("verify", "--help"),
        ("export", "--help"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}" if len(command) > 1 else command[0],
)
def test_what_belongs_on_a_device_works(device: Environment, command: tuple[str | Path, ...]) -> None:
    done = device.t5edge(*command)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("export", "--variant", "t5-demo"), "export,onnxruntime"),
        (("verify", FLOAT_BUNDLE), "export,onnxruntime"),
        (("report", FLOAT_BUNDLE), "report"),
        (("build", FLOAT_BUNDLE, "--target", "tensorrt-rtx", "--compute-capability", "8.6"), "rtx"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_rest_says_what_to_install(device: Environment, command: tuple[str | Path, ...], extra: str) -> None:
    done = device.t5edge(*command)
    lines = [line for line in done.stderr.splitlines() if line.startswith("t5edge")]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert f'pip install "t5edge[{extra}]"' in lines[0]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module", params=["3.10", "3.11"])
def rtx(wheel: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("rtx")
    yield make(wheel, folder, request.param, "rtx")
    shutil.rmtree(folder)


def test_rtx_alone_builds_engines(rtx: Environment, tmp_path: Path) -> None:
    assert not {"torch", "transformers", "onnxruntime", "onnx-ir", "safetensors"} & rtx.packages().keys()
    assert rtx.shared_names() == {}
    bundle = shutil.copytree(FLOAT_BUNDLE, tmp_path / "bundle")
    done = rtx.t5edge("build", bundle, "--target", "tensorrt-rtx", "--compute-capability", "8.6")
    assert done.returncode == 0, done.stderr
    engines = {file.name for file in (bundle / "engines" / "tensorrt-rtx" / "8.6").iterdir()}
    assert {"encoder.engine", "decoder.engine"} <= engines


def test_rtx_alone_says_how_to_run_on_the_cpu(rtx: Environment) -> None:
    done = rtx.t5edge("generate", TEXT_BUNDLE, "hello")
    line = 't5edge generate: onnxruntime is not installed; pip install "t5edge[onnxruntime]"\n'
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
