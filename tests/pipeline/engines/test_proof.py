from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.bundles import Workshop
from support.gpus import NO_GPU, SetGpus, Told
from support.host_device import pretend_gpu
from t5edge.bundle.manifest import Manifest, damaged_files
from t5edge.bundle.parity_report import ParityReport, failure
from t5edge.cli import main
from t5edge.engines.build import build_engines
from t5edge.engines.proof import kept_run, proof, record_run, with_run
from t5edge.errors import UserError
from t5edge.parity.ladder import CHECKS, Check, verify
from t5edge.runtime.gpu import Gpu
from t5edge.runtime.tensorrt.flavor import TensorRT

ENCODER: tuple[Check, ...] = tuple(check for check in CHECKS if check.name == "2 encoder")
GPU = Gpu("NVIDIA Test 3090", "8.6", "13.0")
NOT_RUN = f"not run: {NO_GPU.reason}"


@pytest.fixture(scope="module")
def built(shallow: Workshop, rtx: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with real engines that nothing has run."""
    folder = shallow.fresh(tmp_path_factory.mktemp("built") / "bundle", "fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("t5edge.engines.build.find_gpus", lambda: NO_GPU)
        build_engines(folder, "tensorrt-rtx", ["8.6", "8.9"])
    return folder


@pytest.fixture(scope="module")
def report(built: Path) -> ParityReport:
    """What the ladder really finds, on the target that runs here."""
    return verify(built, checks=ENCODER)


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


def run_of(manifest: Manifest, capability: str = "8.6") -> Any:
    return manifest.engines["tensorrt-rtx"][capability].run


def test_a_proof_is_the_gpu_the_verdict_and_the_checks(report: ParityReport) -> None:
    found = proof(GPU, report)
    assert (found.gpu, found.verdict) == ("NVIDIA Test 3090", "pass")
    assert [(rung.name, rung.verdict) for rung in found.rungs] == [
        ("files", "pass"),
        ("2 encoder", "pass"),
        ("2 encoder", "pass"),
    ]
    data = found.to_dict()
    assert set(data["rungs"][1]) == {"name", "measure", "value", "limit", "verdict"}
    assert data == json.loads(json.dumps(data))


def test_one_failed_check_is_a_failed_proof(report: ParityReport) -> None:
    worse = ParityReport([*report.results, failure("3 logits", "NaN or infinity in the logits")], report.facts)
    assert proof(GPU, worse).verdict == "fail"


def test_only_the_run_of_these_engines_changes(built: Path, report: ParityReport) -> None:
    before = Manifest.read(built)
    after = with_run(before, "tensorrt-rtx", "8.6", proof(GPU, report))
    assert before == Manifest.read(built)
    assert run_of(before) == run_of(before, "8.9") == run_of(after, "8.9") == NOT_RUN
    assert run_of(after) == proof(GPU, report)
    assert with_run(after, "tensorrt-rtx", "8.6", NOT_RUN) == before


@pytest.mark.parametrize(("target", "capability"), [("tensorrt-rtx", "12.0"), ("tensorrt", "8.6")])
def test_engines_that_the_manifest_does_not_list_are_refused(built: Path, target: str, capability: str) -> None:
    with pytest.raises(UserError, match=f"lists no {target} engines for compute capability {capability}"):
        with_run(Manifest.read(built), target, capability, NOT_RUN)


def test_the_manifest_on_disk_changes_in_that_field_alone(
    bundle: Path, report: ParityReport, set_gpus: SetGpus
) -> None:
    set_gpus("8.6")
    before, told = (bundle / "bundle.json").read_text(), Told()
    record_run(bundle, "tensorrt-rtx", report, told)
    after = Manifest.read(bundle)
    assert run_of(after) == proof(Gpu("Test GPU 8.6", "8.6", "13.0"), report)
    record = with_run(after, "tensorrt-rtx", "8.6", NOT_RUN)
    assert json.dumps(record.to_dict(), indent=2, ensure_ascii=False) + "\n" == before
    assert damaged_files(bundle) == []
    assert not list(bundle.glob("*.partial"))
    assert told.messages == []


@pytest.mark.parametrize("blocked", [True, False])
def test_what_cannot_be_recorded_is_said(
    bundle: Path, report: ParityReport, set_gpus: SetGpus, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's refusal is played, because root may write into a read-only folder."""
    set_gpus("8.6" if blocked else "12.0")
    if blocked:

        def refuse(self: Path, target: Path) -> Path:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "replace", refuse)
    before, told = (bundle / "bundle.json").read_bytes(), Told()
    record_run(bundle, "tensorrt-rtx", report, told)
    assert (bundle / "bundle.json").read_bytes() == before
    reason = "Permission denied" if blocked else "bundle.json lists no tensorrt-rtx engines for compute capability 12.0"
    assert told.messages == [f"the result is not recorded in '{bundle / 'bundle.json'}': {reason}"]


def test_a_proof_stays_while_its_engines_do(built: Path, report: ParityReport) -> None:
    passed = proof(GPU, report)
    failed = proof(GPU, ParityReport([failure("engine", "wrong")]))
    old = Manifest.read(built).engines["tensorrt-rtx"]["8.6"]
    proven, refuted = replace(old, run=passed), replace(old, run=failed)
    other = {**old.graphs, "encoder": replace(old.graphs["encoder"], sha256="0" * 64)}
    short = replace(passed, rungs=passed.rungs[:1])
    assert kept_run(None, old.graphs, NOT_RUN) == NOT_RUN
    assert kept_run(old, old.graphs, short) == short
    assert kept_run(proven, old.graphs, NOT_RUN) == passed
    assert kept_run(proven, old.graphs, short) == passed
    assert kept_run(proven, old.graphs, failed) == failed
    assert kept_run(proven, other, NOT_RUN) == NOT_RUN
    assert kept_run(refuted, old.graphs, NOT_RUN) == failed
    assert kept_run(refuted, old.graphs, short) == short


def test_building_again_keeps_the_proof_of_engines_that_are_kept(
    bundle: Path, report: ParityReport, set_gpus: SetGpus
) -> None:
    set_gpus("8.6")
    record_run(bundle, "tensorrt-rtx", report, Told())
    set_gpus()
    assert build_engines(bundle, "tensorrt-rtx", ["8.6"])["8.6"].run.verdict == "pass"
    assert build_engines(bundle, "tensorrt-rtx", ["8.6"], force=True)["8.6"].run == NOT_RUN


def test_verify_records_what_it_proved(
    bundle: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_gpus("8.9")
    pretend_gpu(monkeypatch, rtx, bundle)
    report = verify(bundle, target="tensorrt-rtx", checks=ENCODER)
    assert run_of(Manifest.read(bundle), "8.9") == proof(Gpu("Test GPU 8.9", "8.9", "13.0"), report)
    assert run_of(Manifest.read(bundle)) == NOT_RUN


@pytest.mark.slow
def test_the_whole_ladder_climbs_on_engines(
    bundle: Path, rtx: TensorRT, set_gpus: SetGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines for a batch of 4, on host memory: no rung needs more than they take."""
    set_gpus("8.6")
    pretend_gpu(monkeypatch, rtx, bundle)
    report = verify(bundle, target="tensorrt-rtx")
    assert report.passed
    assert {rung: verdict for rung, verdict in report.verdicts().items() if verdict != "pass"} == {
        "arithmetic": "not applicable: nothing is multiplied in integers",
        "3 range": "not applicable: the compute dtype is float, there is nothing to round",
    }


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_without_a_gpu_verify_says_not_run_and_does_not_pass(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    before, junit = (built / "bundle.json").read_bytes(), tmp_path / "parity.xml"
    assert main(["verify", str(built), "--target", target, "--json", "--junit", str(junit)]) == 2
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["passed"] is False
    assert [(rung["name"], rung["verdict"]) for rung in data["rungs"]] == [(check.name, NOT_RUN) for check in CHECKS]
    assert err == (f"t5edge verify: {NOT_RUN}; verify on a machine that runs {target}, or name another --target.\n")
    assert f'tests="{len(CHECKS)}" failures="0" errors="0" skipped="{len(CHECKS)}"' in junit.read_text()
    assert (built / "bundle.json").read_bytes() == before
