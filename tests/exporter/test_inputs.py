from __future__ import annotations

from pathlib import Path

import pytest

from exporter.inputs import content, differences, known_inputs, recorded_options, wanted_inputs
from exporter.options import ExportOptions

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
    ],
)
def test_every_other_option_changes_a_bundle(options: dict[str, object], names: str) -> None:
    assert names in changed(ExportOptions(variant="t5-demo", **options))  # type: ignore[arg-type]


def test_so_does_the_checkpoint() -> None:
    assert changed(PLAIN, "other key") == ["checkpoint"]
    manifest = {"revision": "1234", "content_key": "key"}
    assert known_inputs(manifest)["checkpoint"] == content("1234", "other key") == "commit 1234"
    assert known_inputs({"content_key": "key"})["checkpoint"] == content(None, "key") == "key"


def test_calibration_counts_by_its_content(tmp_path: Path) -> None:
    found = []
    for name, text in (("a.txt", "one"), ("b.txt", "one"), ("c.txt", "two")):
        (tmp_path / name).write_text(text)
        options = ExportOptions(variant="t5-demo", calibration=str(tmp_path / name))
        found.append(recorded_options(options)["calibration"])
    assert found[0] == found[1] != found[2]


def test_the_python_version_is_neutral_and_other_tools_are_not() -> None:
    wanted = wanted_inputs(PLAIN, "key")
    manifest = {
        **wanted,
        "content_key": "key",
        "tools": {**wanted["tools"], "python": "3.99", "torch": "1.0"},
        "files": {},
    }
    assert differences(known_inputs(manifest), wanted) == ["tools.torch"]


def test_a_manifest_without_options_differs() -> None:
    wanted = wanted_inputs(PLAIN, "key")
    assert differences(known_inputs({"content_key": "key"}), wanted)[0] == "options"
