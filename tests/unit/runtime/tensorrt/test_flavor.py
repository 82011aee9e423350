from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from t5edge.engines.guards import check_form
from t5edge.engines.polygraphy_backend import load_builder, point_polygraphy
from t5edge.engines.targets import portable_only
from t5edge.errors import UserError
from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT, flavor_of, load_tensorrt, spelled


def test_both_flavors_are_rows() -> None:
    assert flavor_of("tensorrt").module == "tensorrt"
    assert flavor_of("tensorrt-rtx").module == "tensorrt_rtx"


def test_another_target_has_no_engines() -> None:
    with pytest.raises(UserError, match="'onnxruntime' has no engines to build; choose one of tensorrt, tensorrt-rtx"):
        flavor_of("onnxruntime")


@pytest.mark.parametrize(("text", "pair"), [("10.14.1.48", (10, 14)), ("1.7.1.116", (1, 7)), ("11.2.0", (11, 2))])
def test_versions_compare_as_numbers(text: str, pair: tuple[int, int]) -> None:
    class Module:
        __version__ = text

    loaded, (major, minor) = TensorRT(FLAVORS["tensorrt"], Module), pair
    assert loaded.at_least(pair)
    assert not loaded.at_least((major, minor + 1))


def test_a_missing_package_names_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorrt is not installed.*pip install \"t5edge\[tensorrt\]\""):
        load_tensorrt("tensorrt")


def test_polygraphy_is_asked_for_only_where_engines_are_built(monkeypatch: pytest.MonkeyPatch, rtx: TensorRT) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "polygraphy" else found(name))
    assert load_tensorrt("tensorrt-rtx").version == rtx.version
    with pytest.raises(UserError, match=r"polygraphy is not installed.*pip install polygraphy"):
        load_builder("tensorrt-rtx")


def test_a_package_that_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UserError, match=r"does not load \(libcudart"):
        load_tensorrt("tensorrt")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TensorRT]:
    """TensorRT in a version of which nothing but its number is there."""

    def load(version: str) -> TensorRT:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(__version__=version))
        return load_tensorrt("tensorrt")

    return load


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "10.2.0.post1"])
def test_a_version_before_the_oldest_is_refused(installed: Callable[[str], TensorRT], version: str) -> None:
    with pytest.raises(UserError, match=rf"tensorrt {version} is too old: tensorrt 10.3 or newer is needed"):
        installed(version)


@pytest.mark.parametrize(
    ("version", "attention"),
    [("10.3.0", False), ("10.7.0", False), ("10.13.3.9", False), ("10.14.1.48", True), ("11.4.1", True)],
)
def test_the_version_says_which_graphs_it_reads(
    installed: Callable[[str], TensorRT], version: str, attention: bool
) -> None:
    """JetPack 6 has 10.3, JetPack 7.0 and 7.1 have 10.13."""
    tool = installed(version)
    assert tool.has_attention == attention
    assert (check_form(tool, portable=True) is None) == attention
    if attention:
        assert check_form(tool, portable=False) is None
    else:
        told = "reads portable graphs only; export with --opset 17, or upgrade: tensorrt 10.14 is the first"
        with pytest.raises(UserError, match=f"tensorrt {version} {told}"):
            check_form(tool, portable=False)
    found = portable_only(["abacus", "onnxruntime", "tensorrt"])
    assert (None if found is None else found.title) == (None if attention else f"tensorrt {version}")


def test_packaging_and_documents_state_the_same_oldest_version() -> None:
    root = Path(__file__).parents[4]
    row = FLAVORS["tensorrt"]
    extras = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert f"tensorrt>={spelled(row.oldest)}" in extras["tensorrt"]
    for name in ("tensorrt.md", "portable.md", "install.md"):
        text = (root / "docs" / name).read_text("utf-8")
        stated = set(re.findall(r"TensorRT (?:before |from )?(10\.\d+)", text))
        assert {spelled(row.oldest), spelled(row.oldest_attention)} <= stated, name


def test_the_installed_module_loads(rtx: TensorRT) -> None:
    assert rtx.title == f"tensorrt-rtx {rtx.version}"
    assert rtx.at_least((1, 2))


def test_one_process_serves_one_flavor(rtx: TensorRT) -> None:
    code = (
        "from t5edge.engines.polygraphy_backend import point_polygraphy\n"
        "from t5edge.runtime.tensorrt.flavor import FLAVORS\n"
        "from t5edge.errors import UserError\n"
        "point_polygraphy(FLAVORS['tensorrt-rtx'])\n"
        "import polygraphy.backend.trt\n"
        "point_polygraphy(FLAVORS['tensorrt-rtx'])\n"
        "try:\n"
        "    point_polygraphy(FLAVORS['tensorrt'])\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "one process serves either tensorrt or tensorrt-rtx" in done.stdout
    assert "t5edge build BUNDLE --target tensorrt" in done.stdout


def test_pointing_back_is_possible_before_the_backend_is_loaded() -> None:
    point_polygraphy(FLAVORS["tensorrt-rtx"])
    import polygraphy.config

    assert polygraphy.config.USE_TENSORRT_RTX is True
