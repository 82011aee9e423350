"""The export side in fresh environments: with the newest packages, the oldest stated ones, and beside ``kernels``."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.environments import ROOT, TORCH, Environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
EXTRAS = ("export", "onnxruntime")


@pytest.fixture(scope="module")
def newest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("newest")
    environment = Environment.make(folder / "env")
    environment.install("--upgrade", f"{wheel}[export]", TORCH)
    yield environment
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lowest(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("lowest")
    environment = Environment.make(folder / "env")
    environment.install(str(wheel), *(f"{name}=={version}" for name, version in stated_lowest().items()))
    yield environment
    shutil.rmtree(folder)


def stated_lowest() -> dict[str, str]:
    """The lowest version that pyproject.toml states of each package of an export."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    needed = [wanted for wanted in map(Requirement, lines) if wanted.marker is None or wanted.marker.evaluate()]
    return {wanted.name: next(s.version for s in wanted.specifier if s.operator == ">=") for wanted in needed}


def export_demo(environment: Environment, precision: str) -> None:
    out = environment.folder / f"t5-demo-{precision}"
    arguments = ["--precision", precision, "--target", "onnxruntime", "--out", out, "--force"]
    done = environment.t5edge("export", "--variant", "t5-demo", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
    done = environment.t5edge("generate", out, "spell 1984")
    assert done.stdout == "one thousand, nine hundred and eighty-four\n"


def test_without_a_runtime_the_export_says_which_to_install(newest: Environment) -> None:
    assert "onnxruntime" not in newest.packages()
    done = newest.t5edge("export", "--variant", "t5-demo", "--out", newest.folder / "none", "--target", "onnxruntime")
    line = 't5edge export: onnxruntime is not installed; pip install "t5edge[onnxruntime]"'
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, line)
    assert not (newest.folder / "none").exists()


def test_the_newest_packages_export(newest: Environment) -> None:
    newest.install("--upgrade", "onnxruntime")
    assert newest.shared_names().keys() <= {"google", "nvidia"}
    print(f"\n{newest.packages()}")
    export_demo(newest, "fp32")


def test_the_package_kernels_stays_whole_beside_ours(newest: Environment, wheel: Path) -> None:
    newest.install("kernels")
    newest.check_records("t5edge", "kernels")
    newest.install("--force-reinstall", "--no-deps", str(wheel))
    newest.check_records("t5edge", "kernels")
    found = newest.run("import kernels, transformers, t5edge; print(kernels.__file__); print(t5edge.__file__)")
    assert re.search(r"site-packages.kernels.__init__\.py", found)
    export_demo(newest, "fp32")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_lowest_stated_versions_export(lowest: Environment, precision: str) -> None:
    installed = lowest.packages()
    for name, version in stated_lowest().items():
        found = installed[name.lower().replace("_", "-")].partition("+")[0]
        assert found == version or found.startswith(f"{version}."), name
    export_demo(lowest, precision)
