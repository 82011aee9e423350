"""Heavy packages load where they are used: proven in fresh processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import Workshop

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "tensorrt_rtx", "onnxruntime", "matplotlib")


def loaded_after(code: str, *arguments: str) -> set[str]:
    report = "\nimport sys\nprint('LOADED', *sorted(name for name in sys.modules if '.' not in name))"
    command = [sys.executable, "-c", code + report, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(next(line for line in done.stdout.splitlines() if line.startswith("LOADED")).split()[1:])


@pytest.mark.parametrize(
    "code",
    [
        "import t5edge",
        "from t5edge import cli; cli.build_parser().format_help()",
        "import contextlib\nfrom t5edge.cli import main\nwith contextlib.suppress(SystemExit): main(['build', '-h'])",
        "import t5edge.options, t5edge.exporter.family.variants; t5edge.exporter.family.variants.variants()",
    ],
)
def test_help_and_import_load_nothing_heavy(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


@pytest.mark.parametrize("precision", ["fp32", "int8-weight"])
def test_load_and_generate_need_neither_torch_nor_transformers(demo: Workshop, precision: str) -> None:
    code = """
import sys, t5edge
model = t5edge.load(sys.argv[1])
answers = model.generate_text(["spell 7", "read de dreizehn"], num_beams=2)
assert answers == ["seven", "13"], answers
"""
    loaded = loaded_after(code, str(demo.bundle(precision, "concat")))
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub"}


def test_the_demo_checkpoint_ships_with_the_package() -> None:
    import t5edge

    folder = Path(t5edge.__file__).parent / "exporter" / "data" / "t5-demo"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= sizes.keys()
    assert sizes["model.safetensors"] > 1e6
    assert sum(sizes.values()) <= 5e6
