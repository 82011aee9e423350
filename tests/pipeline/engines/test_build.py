from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import onnx
import pytest

from support.bundles import SHALLOW, Workshop
from support.gpus import NO_GPU, SetGpus, Told
from t5edge.bundle.engine_record import EngineEntry
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.cli import main
from t5edge.engines.attention import shape_attentions
from t5edge.engines.build import build_engines, check_buildable
from t5edge.errors import UserError
from t5edge.runtime.tensorrt.flavor import TensorRT

pytestmark = pytest.mark.usefixtures("no_gpu")
ATTENTIONS = (("encoder", SHALLOW["encoder"]), ("decoder", 2 * 2 * SHALLOW["decoder"]))
"""In an engine: one of an encoder's layer, two of a decoder's, times its profiles."""


@pytest.fixture
def bundle(shallow: Workshop, tmp_path: Path, rtx: TensorRT) -> Path:
    return shallow.fresh(tmp_path / "bundle", "fp16")


@pytest.fixture(scope="module")
def built(shallow: Workshop, rtx: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with both engines for 8.6; to be read only."""
    folder = shallow.fresh(tmp_path_factory.mktemp("built") / "bundle", "fp16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t5edge.engines.build.find_gpus", lambda: NO_GPU)
        build_engines(folder, "tensorrt-rtx", ["8.6"])
    return folder


@pytest.fixture
def with_engines(built: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(built, tmp_path / "built"))


def entry_of(folder: Path) -> EngineEntry:
    return Manifest.read(folder).engines["tensorrt-rtx"]["8.6"]


def test_both_engines_are_built_and_recorded(built: Path, rtx: TensorRT) -> None:
    bundle, manifest = built, Manifest.read(built)
    entries = manifest.engines["tensorrt-rtx"]
    assert list(manifest.engines) == ["tensorrt-rtx"]
    assert list(entries) == ["8.6"]
    for graph, attentions in ATTENTIONS:
        record = entries["8.6"].graphs[graph]
        engine = bundle / "engines" / "tensorrt-rtx" / "8.6" / f"{graph}.engine"
        assert engine.stat().st_size == record.bytes == manifest.files[record.file].bytes
        assert json.loads(engine.with_name(engine.name + ".json").read_text()) == record.to_dict()
        assert (record.target, record.version, record.compute_capability) == (
            "tensorrt-rtx",
            rtx.version,
            "8.6",
        )
        assert record.sources[f"{graph}.onnx"] == manifest.hashes[f"{graph}.onnx"]
        assert record.sources["weights.safetensors"] == manifest.hashes["weights.safetensors"]
        assert (record.attention.fused, record.attention.decomposed) == (attentions, ())
        assert record.seconds > 0
    assert entries["8.6"].graphs["decoder"].profiles[0]["target"] == (1, 1, 1)
    assert "target" not in entries["8.6"].graphs["encoder"].profiles[0]
    assert damaged_files(bundle) == []


def test_without_a_gpu_running_is_recorded_as_not_run(built: Path) -> None:
    assert entry_of(built).run == "not run: no GPU: none in this test"


def test_several_generations_in_one_bundle(with_engines: Path) -> None:
    made = build_engines(with_engines, "tensorrt-rtx", ["8.9"])
    engines = Manifest.read(with_engines).engines["tensorrt-rtx"]
    assert sorted(engines) == ["8.6", "8.9"]
    assert engines["8.9"] == made["8.9"]
    assert len(list(with_engines.rglob("*.engine"))) == 4
    assert damaged_files(with_engines) == []


def test_an_engine_that_fits_is_kept_unless_forced(with_engines: Path) -> None:
    bundle, told = with_engines, Told()
    assert build_engines(bundle, "tensorrt-rtx", ["8.6"], progress=told) == {"8.6": entry_of(bundle)}
    assert told.messages == [f"{graph} for tensorrt-rtx 8.6 is up to date" for graph in ("encoder", "decoder")]
    again = Told()
    build_engines(bundle, "tensorrt-rtx", ["8.6"], force=True, progress=again)
    assert again.messages == []


def test_a_damaged_engine_is_built_again(with_engines: Path) -> None:
    bundle = with_engines
    engine = bundle / "engines" / "tensorrt-rtx" / "8.6" / "encoder.engine"
    engine.write_bytes(engine.read_bytes()[:100])
    told = Told()
    build_engines(bundle, "tensorrt-rtx", ["8.6"], progress=told)
    assert told.messages == ["decoder for tensorrt-rtx 8.6 is up to date"]
    assert damaged_files(bundle) == []


def test_without_fusion_is_another_engine(with_engines: Path) -> None:
    bundle = with_engines
    entries = build_engines(bundle, "tensorrt-rtx", ["8.6"], no_fuse=True)
    for graph in ("encoder", "decoder"):
        assert entries["8.6"].graphs[graph].no_fuse is True
        assert entries["8.6"].graphs[graph].attention.form == "split"
        assert entries["8.6"].graphs[graph].attention.fused == 0


@pytest.mark.parametrize(("cache", "decoders"), [("in-place", ["decoder_in_place"])])
def test_the_cache_decides_which_decoder_is_built(
    shallow: Workshop, tmp_path: Path, rtx: TensorRT, cache: str, decoders: list[str]
) -> None:
    folder = shallow.fresh(tmp_path / "bundle", "fp16", cache)
    entries = build_engines(folder, "tensorrt-rtx", ["8.6"])
    assert list(entries["8.6"].graphs) == ["encoder", *decoders]
    assert (folder / "decoder.onnx").is_file()


def test_a_changed_graph_is_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    model.doc_string = "changed"
    onnx.save(model, bundle / "decoder.onnx")
    with pytest.raises(UserError, match=r"decoder.onnx' is missing or not the file the bundle was exported with"):
        build_engines(bundle, "tensorrt-rtx", ["8.6"])
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize(
    ("precision", "capability", "says"),
    [
        ("bf16", "7.5", "bfloat16 arithmetic begins with Ampere"),
        ("fp32", "7.5", "no float32 matrix product for Turing"),
        ("fp16", "8.7", "Jetson Orin: build on the device with --target tensorrt"),
        ("fp16", "9.0", "Hopper"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_build(
    demo: Workshop, tmp_path: Path, precision: str, capability: str, says: str
) -> None:
    folder = demo.fresh(tmp_path / "bundle", precision)
    with pytest.raises(UserError, match=says):
        build_engines(folder, "tensorrt-rtx", [capability])
    assert not (folder / "engines").exists()


def test_the_same_is_known_before_an_export() -> None:
    with pytest.raises(UserError, match="bfloat16 arithmetic begins with Ampere"):
        check_buildable("tensorrt-rtx", ["7.5"], "bfloat16")
    with pytest.raises(UserError, match="--compute-capability must say"):
        check_buildable("tensorrt-rtx", [], "float16")
    with pytest.raises(UserError, match="builds for the GPU in the machine"):
        check_buildable("tensorrt", [], "float16")


def test_a_buildable_export_passes(rtx: TensorRT, set_gpus: SetGpus) -> None:
    assert check_buildable("tensorrt-rtx", ["8.6"], "float16") == ("8.6",)
    set_gpus("8.9")
    assert check_buildable("tensorrt-rtx", [], "float16") == ("8.9",)


DEVICE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name + " is not on the device")

sys.meta_path.insert(0, Refuse())
from t5edge.engines.build import build_engines
entries = build_engines({folder!r}, "tensorrt-rtx", ["8.6"])
print(sorted(entries["8.6"].to_dict()))
print(sorted(name for name in sys.modules if name in {blocked}))
"""


def test_the_device_needs_neither_torch_nor_transformers_nor_onnxruntime(bundle: Path) -> None:
    blocked = {"torch", "transformers", "onnxruntime", "onnx_ir", "onnxscript", "safetensors", "tokenizers", "rich"}
    code = DEVICE.format(blocked=blocked, folder=str(bundle))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['decoder', 'encoder', 'run']", "[]"]


FULL_TENSORRT = """
import json, sys, types
import tensorrt_rtx

full = types.ModuleType("tensorrt")
full.__dict__.update({{name: value for name, value in vars(tensorrt_rtx).items() if not name.startswith("__")}})
full.__version__, full.__spec__ = "11.4.1", tensorrt_rtx.__spec__
sys.modules["tensorrt"] = full
from t5edge.engines import build as tensorrt
from t5edge.runtime.gpu import Gpu, GpuReport

tensorrt.find_gpus = lambda: GpuReport((Gpu("Test GPU", "8.9", "13.0"),))
print(json.dumps(tensorrt.build_engines({folder!r}, "tensorrt")["8.9"].to_dict()))
"""


def test_the_path_of_full_tensorrt_is_the_same_code(bundle: Path, caches: Path) -> None:
    """TensorRT-RTX under the other name: TensorRT's own configuration and timing cache, the GPU in the machine."""
    code = FULL_TENSORRT.format(folder=str(bundle))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    for graph, attentions in ATTENTIONS:
        assert (entry[graph]["target"], entry[graph]["version"]) == ("tensorrt", "11.4.1")
        assert (bundle / "engines" / "tensorrt" / "8.9" / f"{graph}.engine").is_file()
        assert entry[graph]["attention"]["fused"] == attentions
    assert entry["run"].startswith("not run: ")
    assert (caches / "t5edge" / "timing-tensorrt-11.4.1-8.9.cache").is_file()


@pytest.mark.slow
def test_few_packages_suffice_on_the_device(bundle: Path, tmp_path: Path) -> None:
    """A virtual environment with what building needs, and nothing of torch, builds the bundle's engines."""
    needed = ("numpy", "onnx", "packaging", "polygraphy", "tensorrt-rtx-cu13")
    packages = [f"{name}=={metadata.version(name)}" for name in needed]
    python = tmp_path / "device" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "device"], check=True)
    installed = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True, check=False)
    if installed.returncode:
        pytest.skip("the packages cannot be installed here")
    code = f"""
from t5edge.engines.build import build_engines
from t5edge.engines.doctor import targets_report
print(sorted(build_engines({str(bundle)!r}, "tensorrt-rtx", ["8.6"])["8.6"].to_dict()))
print([row["target"] for row in targets_report() if row["can_build"]])
"""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "t5edge").symlink_to(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path")}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['decoder', 'encoder', 'run']", "['tensorrt-rtx']"]


def test_an_export_builds_engines(tmp_path: Path, rtx: TensorRT) -> None:
    from t5edge import pipeline

    bundle = pipeline.export(
        "t5-demo",
        "bf16",
        out=tmp_path / "out",
        targets=("tensorrt-rtx",),
        compute_capability=("8.6",),
        cache="both",
        no_verify=True,
    )
    entry = bundle.manifest.engines["tensorrt-rtx"]["8.6"]
    assert list(entry.graphs) == ["encoder", "decoder", "decoder_in_place"]
    assert Manifest.read(bundle.folder) == bundle.manifest
    assert damaged_files(bundle.folder) == []


@pytest.mark.parametrize("force", [False, True])
def test_an_engine_that_fails_its_check_fails_the_export_and_is_kept_for_study(
    tmp_path: Path,
    rtx: TensorRT,
    demo: Workshop,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    force: bool,
) -> None:
    """Attention written out in matrix products, where fused kernels are required: the real builder's real plan."""
    out = tmp_path / "out"
    monkeypatch.setattr(
        "t5edge.engines.builder.shape_attentions",
        lambda tool, network, attentions, form: shape_attentions(tool, network, attentions, "split"),
    )
    arguments = ["--variant", "t5-demo", "--precision", "bf16", "--no-verify", "--out", str(out)]
    if force:
        demo.fresh(out, "fp16")
        arguments.append("--force")
    assert main(["export", *arguments, "--target", "tensorrt-rtx", "--compute-capability", "8.6"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("t5edge export: encoder.onnx for compute capability 8.6: 0 of 4 attentions have a fused")
    assert said.endswith(f"The bundle is kept for study as '{out}.failed'.")
    assert damaged_files(Path(f"{out}.failed")) == []
    assert Manifest.read(Path(f"{out}.failed")).precision.name == "bf16"
    assert out.exists() == force
    if force:
        assert Manifest.read(out).precision.name == "fp16"


def test_an_export_is_refused_before_any_work(tmp_path: Path, rtx: TensorRT) -> None:
    from t5edge import pipeline

    with pytest.raises(UserError, match="target 'tensorrt-xtr' is unknown"):
        pipeline.export("t5-demo", out=tmp_path / "out", targets=("tensorrt-xtr",))
    with pytest.raises(UserError, match="Jetson Thor"):
        pipeline.export("t5-demo", out=tmp_path / "out", targets=("tensorrt-rtx",), compute_capability=("11.0",))
    assert not (tmp_path / "out").exists()
