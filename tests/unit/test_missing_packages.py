"""A package that is not installed: one line that names the extra, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import t5edge
from t5edge.errors import EXTRAS, UserError, explain_import

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "tests" / "bundles-0.1" / "byt5-int8"
WITHOUT = """
import importlib.util, sys
absent = sys.argv.pop(1).split(",")
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)
sys.modules.update(dict.fromkeys(absent))
from t5edge import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def run_without(packages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, packages, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "COLUMNS": "240"}
    )


def test_every_extra_named_is_stated_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {"onnx_ir": "onnx-ir", "tensorrt_rtx": "tensorrt-rtx-cu13"}
    for module, extras in EXTRAS.items():
        brought = [
            Requirement(line).name for extra in extras.split(",") for line in project["optional-dependencies"][extra]
        ]
        assert names.get(module, module) in brought, module


@pytest.mark.parametrize("name", ["torch", "torch.nn", "onnx_ir"])
def test_an_import_that_failed_is_explained(name: str) -> None:
    explained = explain_import(ModuleNotFoundError("no", name=name))
    package = name.partition(".")[0]
    assert str(explained) == f'{package} is not installed; pip install "t5edge[export,onnxruntime]"'


@pytest.mark.parametrize("name", [None, "t5edge.nowhere", "torchvision"])
def test_another_import_that_failed_is_a_bug(name: str | None) -> None:
    assert explain_import(ModuleNotFoundError("no", name=name)) is None


@pytest.mark.parametrize(
    ("absent", "arguments", "line"),
    [
        (
            "torch",
            ["export", "--variant", "t5-demo"],
            'torch is not installed; pip install "t5edge[export,onnxruntime]"',
        ),
        (
            "onnxruntime",
            ["export", "--variant", "t5-demo"],
            'onnxruntime is not installed; pip install "t5edge[onnxruntime]"',
        ),
        ("onnx", ["verify", str(BUNDLE)], 'onnx is not installed; pip install "t5edge[export,onnxruntime]"'),
        (
            "onnxruntime",
            ["generate", str(BUNDLE), "x"],
            'onnxruntime is not installed; pip install "t5edge[onnxruntime]"',
        ),
        (
            "tensorrt_rtx",
            ["build", str(BUNDLE), "--target", "tensorrt-rtx", "--compute-capability", "8.6"],
            'tensorrt_rtx is not installed, target tensorrt-rtx needs it; pip install "t5edge[rtx]"',
        ),
    ],
)
def test_a_command_says_what_to_install(absent: str, arguments: list[str], line: str) -> None:
    done = run_without(absent, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"t5edge {arguments[0]}: {line}"


def test_doctor_needs_no_backend() -> None:
    done = run_without("onnxruntime,tensorrt,tensorrt_rtx,polygraphy,onnx,torch,transformers,onnx_ir", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(extra in done.stdout for extra in ("[onnxruntime]", "[onnxruntime-gpu]", "[tensorrt]", "[rtx]"))


@pytest.mark.parametrize("name", ["export", "verify"])
def test_the_python_interface_says_it_too(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(UserError, match=r'^torch is not installed; pip install "t5edge\[export,onnxruntime\]"$'):
        getattr(t5edge, name)
