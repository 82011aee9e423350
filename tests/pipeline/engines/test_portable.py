"""Engines of graphs without fused operators: the builder finds the same kernels, and older versions read them."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from support.bundles import Workshop, tiny_workshop
from support.exports import Exports
from support.gpus import Told
from support.tiny_models import tiny_models
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.cli import main
from t5edge.commands.arguments import parse
from t5edge.engines.attention import attention_form
from t5edge.engines.build import build_engines
from t5edge.engines.targets import choose_targets
from t5edge.errors import UserError
from t5edge.options import ExportOptions, wanted_row
from t5edge.pipeline import choose_opset
from t5edge.progress import Silent
from t5edge.runtime.tensorrt.flavor import FLAVORS, TensorRT

pytestmark = pytest.mark.usefixtures("no_gpu", "rtx")
RTX = "tensorrt-rtx"
CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
FAMILY = [tiny.name for tiny in tiny_models()]


@pytest.fixture
def bundle(shallow: Workshop, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shallow.portable("fp16"), tmp_path / "bundle"))


@pytest.fixture
def without_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version of TensorRT-RTX counts as one whose parser knows no ``Attention``."""
    monkeypatch.setitem(FLAVORS, RTX, replace(FLAVORS[RTX], oldest_attention=(99, 1)))


def softmaxes(folder: Path, graph: str) -> int:
    nodes = onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph.node
    assert not any(node.op_type == "Attention" for node in nodes)
    return sum(node.op_type == "Softmax" for node in nodes)


def check_engines(folder: Path, capability: str) -> None:
    """Build, and hold every attention to what the precision and the head size allow."""
    manifest = Manifest.read(folder)
    form = attention_form(manifest.precision.compute, manifest.architecture.d_kv, no_fuse=False)
    records = build_engines(folder, RTX, [capability])[capability].graphs
    for graph, profiles in (("encoder", 1), ("decoder", 2)):
        attention = records[graph].attention
        assert (attention.form, attention.expected) == (form, softmaxes(folder, graph) * profiles)
        if form == "fused":
            assert (attention.fused, attention.decomposed) == (attention.expected, ())


def test_every_attention_is_fused_unless_asked_otherwise(bundle: Path) -> None:
    check_engines(bundle, "8.6")
    kernels = Manifest.read(bundle).engines[RTX]["8.6"].graphs["decoder"].attention.kernels
    assert kernels == {"_gemm_mha_v2": 2, "_gemv_mha_v1": 2}
    assert damaged_files(bundle) == []
    plain = build_engines(bundle, RTX, ["8.6"], no_fuse=True)["8.6"].graphs
    assert [plain[graph].attention.fused for graph in ("encoder", "decoder")] == [0, 0]


@pytest.mark.slow
def test_a_single_head_is_fused(tmp_path: Path) -> None:
    check_engines(tiny_workshop(tmp_path, "efficient-kv256-tiny").portable("fp16"), "7.5")


def test_float32_may_be_split(tmp_path: Path, shallow: Workshop) -> None:
    check_engines(Path(shutil.copytree(shallow.portable("fp32"), tmp_path / "bundle")), "12.0")


@pytest.mark.usefixtures("without_attention")
def test_a_version_without_attention_takes_portable_graphs_alone(
    bundle: Path, shallow: Workshop, rtx: TensorRT, tmp_path: Path
) -> None:
    told = Told()
    build_engines(bundle, RTX, ["8.6"], progress=told)
    first = "tensorrt-rtx 99.1 is the first that reads fused operators"
    assert told.messages == [f"tensorrt-rtx {rtx.version} reads portable graphs, as these are ({first})"]
    other = shallow.fresh(tmp_path / "other", "fp16")
    with pytest.raises(UserError, match=rf"portable graphs only; export with --opset 17, or upgrade: {first}"):
        build_engines(other, RTX, ["8.6"])
    assert not (other / "engines").exists()


@pytest.mark.usefixtures("without_attention")
def test_an_export_learns_it_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="reads portable graphs only; export with --opset 17"):
        choose_targets([RTX], ["8.6"], "float16")
    assert choose_targets([RTX], ["8.6"], "float16", portable=True) == (RTX,)
    monkeypatch.setattr("t5edge.engines.targets.engine_targets", lambda: (RTX,))
    assert choose_targets([], ["8.6"], "float16") == ()
    assert choose_targets([], ["8.6"], "float16", portable=True) == (RTX,)


def test_a_version_with_attention_leaves_the_graphs_as_they_are() -> None:
    options = ExportOptions("t5-demo", target=(RTX,))
    assert choose_opset(options, wanted_row(options), Silent()).opset == 23


@pytest.mark.usefixtures("without_attention")
@pytest.mark.parametrize("given", [17, 23])
def test_what_the_user_said_of_the_opset_holds(given: int) -> None:
    options, told = ExportOptions("t5-demo", target=(RTX,), opset=given), Told()
    assert choose_opset(options, wanted_row(options), told) == options
    assert told.messages == []


@pytest.mark.usefixtures("without_attention")
@pytest.mark.parametrize("settings", [{"precision": "int4-weight"}, {"cache": "in-place"}])
def test_what_cannot_be_portable_is_refused_for_a_target_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
) -> None:
    """And stays as it is where that target is only there."""
    options = ExportOptions("t5-demo", target=(RTX,), **settings)
    with pytest.raises(UserError, match=r"reads portable graphs only; --(precision int4-weight|cache in-place) and"):
        choose_opset(options, wanted_row(options), Silent())
    monkeypatch.setattr("t5edge.engines.targets.engine_targets", lambda: (RTX,))
    found = replace(options, target=())
    assert choose_opset(found, wanted_row(found), Silent()).opset == 23


@pytest.mark.usefixtures("without_attention")
def test_an_export_takes_the_form_that_the_version_reads(
    tmp_path: Path, rtx: TensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a sweep keeps it: it was made from the same inputs."""
    out = tmp_path / "t5-demo-fp16"
    arguments = ["export", "--variant", "t5-demo", "--precision", "fp16", "--target", RTX, "--compute-capability=8.6"]
    arguments += ["--no-verify"]
    line = f"tensorrt-rtx {rtx.version} reads portable graphs only, so these are: --opset 17"
    assert main([*arguments, "--out", str(out), "--dry-run", "--json"]) == 0
    plan, err = capsys.readouterr()
    assert json.loads(plan)["opset"] == 17
    assert line in err
    assert main([*arguments, "--out", str(out), "--dry-run"]) == 0
    assert "opset 17, portable" in capsys.readouterr().out
    assert main([*arguments, "--out", str(out)]) == 0
    assert line in capsys.readouterr().err
    manifest = Manifest.read(out)
    assert (manifest.opset, set(manifest.engines)) == (17, {RTX})
    planned = {name for name in json.loads(plan)["files"] if not name.startswith("engines/")}
    assert planned == {"bundle.json", *(name for name in manifest.files if not name.startswith("engines/"))}
    assert main([*arguments, "--jobs", "1", "--out", str(tmp_path), "--json"]) == 0
    assert [one["status"] for one in json.loads(capsys.readouterr().out)["exports"]] == ["kept"]


@pytest.mark.usefixtures("without_attention")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_build_names_the_command_that_makes_what_the_version_reads(
    demo: Workshop, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    folder = demo.bundle("int8-weight", "concat")
    assert main(["build", str(folder), "--target", RTX, "--compute-capability", "8.6", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    command = line.partition("export it again: ")[2].partition(", or upgrade")[0]
    options = parse(shlex.split(command)[1:])[1]
    assert (options["variant"], options["precision"], options["opset"]) == (["t5-demo"], ["int8-weight"], 17)
    assert options["max_batch"] == 4


@pytest.fixture(scope="module", params=FAMILY)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return tiny_workshop(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_family_on_every_generation(member: Workshop, precision: str) -> None:
    folder = member.portable(precision)
    for capability in CAPABILITIES:
        if capability != "7.5" or precision == "fp16":
            check_engines(folder, capability)


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["fp32", "fp16"])
@pytest.mark.parametrize("precision", ["int8", "int8-weight"])
def test_quantized_graphs_on_every_generation(exports: Exports, tmp_path: Path, precision: str, compute: str) -> None:
    settings = {"opset": 17, "compute": compute, "no_verify": True}
    folder = exports.export("t5-demo", precision, tmp_path / "bundle", **settings)
    for capability in CAPABILITIES:
        if capability != "7.5" or compute == "fp16":
            check_engines(folder, capability)
