from __future__ import annotations

from pathlib import Path

import pytest

from support.manifests import tiny_manifest
from t5edge.bundle.precision import Precision, precision
from t5edge.bundle.schema import read_as
from t5edge.errors import UserError
from t5edge.options import ExportOptions, recorded_options, wanted_row
from t5edge.tools.sweep.inputs import content, differences, known_inputs, wanted_inputs

PLAIN = ExportOptions(variant="t5-demo")


def changed(options: ExportOptions, content_key: str = "key") -> list[str]:
    return differences(wanted_inputs(PLAIN, "key"), wanted_inputs(options, content_key))


def test_names_and_places_change_nothing() -> None:
    assert changed(ExportOptions(variant="elsewhere/t5-demo", out="there", force=True)) == []


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"precision": "fp16"}, "precision.name"),
        ({"random_weights": 1}, "options.random_weights"),
        ({"max_batch": 3}, "options.max_batch"),
        ({"no_verify": True}, "options.no_verify"),
        ({"target": ("onnxruntime",)}, "options.target"),
        ({"calibration": "missing.txt"}, "options.calibration"),
        ({"precision": "int8", "compute": "fp16"}, "precision.compute"),
        ({"precision": "int8", "observer": "mse"}, "options.observer"),
    ],
)
def test_every_other_option_changes_a_bundle(options: dict[str, object], names: str) -> None:
    assert names in changed(ExportOptions(variant="t5-demo", **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "compute", "found"),
    [
        ((), "auto", "float"),
        (("onnxruntime",), "auto", "float"),
        (("tensorrt-rtx",), "auto", "float16"),
        (("tensorrt", "tensorrt-rtx"), "auto", "float16"),
        (("onnxruntime", "tensorrt-rtx"), "auto", "float"),
        (("tensorrt-rtx",), "fp32", "float"),
        (("onnxruntime",), "fp16", "float16"),
    ],
)
@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4-weight"])
def test_what_a_quantized_bundle_computes_in(target: tuple[str, ...], compute: str, found: str, name: str) -> None:
    row = wanted_row(ExportOptions("x", name, target, compute=compute))
    assert (row.name, row.compute, row.rescale) == (name, found, found == "float16")
    assert (row.max_kl, row.min_top1) == (precision(name).max_kl, precision(name).min_top1), "the gates stay"
    assert read_as(Precision, row.to_dict(), "", []) == row


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_other_precisions_say_themselves_what_they_compute_in(name: str) -> None:
    assert wanted_row(ExportOptions("x", name, ("tensorrt-rtx",))) == precision(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "fp32", "compute": "fp16"}, "fp32 quantizes nothing; leave it out, or use --precision fp16"),
        ({"precision": "bf16", "compute": "fp32"}, "use --precision fp32"),
        ({"precision": "int8", "compute": "fp16", "require_speedup": True}, "float16 has no kernels.*--compute fp32"),
        ({"precision": "int8-weight", "observer": "mse"}, "int8-weight rounds none; leave it out, or export in int8"),
        ({"precision": "fp16", "observer": "minmax"}, "fp16 rounds none"),
        ({"precision": "fp16", "count_ties": True}, "--count-ties is for quantized .* fp16 quantizes nothing"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        wanted_row(ExportOptions("x", **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("compute", "fp8"), ("observer", "mean"), ("cache", "none")])
def test_an_unknown_choice_names_the_known_ones(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--{name} is '{value}'; choose one of "):
        ExportOptions("x", **{name: value})  # type: ignore[arg-type]


def test_so_does_the_checkpoint() -> None:
    assert changed(PLAIN, "other key") == ["checkpoint"]
    manifest = tiny_manifest(revision="1234", content_key="key")
    assert known_inputs(manifest)["checkpoint"] == content("1234", "other key") == "commit 1234"
    assert known_inputs(tiny_manifest(content_key="key"))["checkpoint"] == content(None, "key") == "key"


def test_calibration_counts_by_its_content(tmp_path: Path) -> None:
    found = []
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(text)
        options = ExportOptions(variant="t5-demo", calibration=str(tmp_path / name))
        found.append(recorded_options(options)["calibration"])
    assert found[0] == found[1] != found[2]


def test_the_python_version_is_neutral_and_other_tools_are_not() -> None:
    wanted = wanted_inputs(PLAIN, "key")
    tools = {**wanted["tools"], "python": "3.99", "torch": "1.0"}
    manifest = tiny_manifest(content_key="key", options=wanted["options"], tools=tools)
    assert differences(known_inputs(manifest), wanted) == ["tools.torch"]


def test_a_manifest_without_options_differs() -> None:
    wanted = wanted_inputs(PLAIN, "key")
    assert differences(known_inputs(tiny_manifest(content_key="key")), wanted)[0] == "options"
