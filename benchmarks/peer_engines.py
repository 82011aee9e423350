"""The toolchains that ``peers`` compares: what each needs, and how its model is made of one checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from benchmarks.checkpoints import save_checkpoint
from benchmarks.processes import run

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
GGUF = Path(__file__).with_name("peer_gguf.py")
LLAMA = "LLAMA_CPP_LIB_PATH"
"""Names a folder with another build of llama.cpp, whose kernels are chosen when it is compiled."""
BASE, OURS = "t5edge fp32", "t5edge int8-weight"


@dataclass(frozen=True)
class Engine:
    """``exact``: up to how many beams its tokens must be those of ``BASE``; 0 unless it computes in float32.

    ``needs``: the package without which it is left out.
    """

    name: str
    worker: str
    folder: str
    needs: str
    exact: float = 0

    @property
    def ours(self) -> bool:
        return self.worker == "t5edge"


ENGINES = (
    Engine(BASE, "t5edge", "t5edge-fp32", "t5edge", exact=inf),
    Engine(OURS, "t5edge", "t5edge-int8-weight", "t5edge"),
    Engine("t5edge int8", "t5edge", "t5edge-int8", "t5edge"),
    Engine("t5edge int4-weight", "t5edge", "t5edge-int4-weight", "t5edge"),
    Engine("transformers eager", "transformers", "checkpoint", "transformers", exact=inf),
    Engine("optimum-onnx", "optimum", "optimum", "optimum", exact=inf),
    Engine("CTranslate2 fp32", "ctranslate2", "ctranslate2", "ctranslate2", exact=1),
    Engine("CTranslate2 int8", "ctranslate2-int8", "ctranslate2-int8", "ctranslate2"),
    Engine("OpenVINO fp32", "openvino", "t5edge-fp32", "openvino", exact=1),
    Engine("OpenVINO int8-weight", "openvino", "t5edge-int8-weight", "openvino"),
    Engine("OpenVINO int8", "openvino", "t5edge-int8", "openvino"),
    Engine("llama.cpp f32", "llama", "llama-f32.gguf", "llama_cpp", exact=1),
    Engine("llama.cpp q8_0", "llama", "llama-q8_0.gguf", "llama_cpp"),
)
COMPILED = Engine("transformers compiled", "transformers-compiled", "checkpoint", "torch", exact=inf)


def chosen(names: list[str], compiled: bool) -> list[Engine]:
    """Those whose names begin so, or all; both that ratios are taken to are always among them."""
    engines = (*ENGINES, COMPILED) if compiled else ENGINES
    return [engine for engine in engines if not names or engine.name.startswith((BASE, OURS, *names))]


def installed(engines: Iterable[Engine], python: Path, mask: str | None) -> list[Engine]:
    """Those that run; the others are named on standard error."""
    listed = list(engines)
    code = "import sys; from importlib.util import find_spec as f; print(*(n for n in sys.argv[1:] if f(n)))"
    found = subprocess.check_output([str(python), "-c", code, *{engine.needs for engine in listed}], text=True).split()
    if mask is not None and LLAMA not in os.environ:
        found = [name for name in found if name != "llama_cpp"]
    missing = [engine.name for engine in listed if not engine.ours and engine.needs not in found]
    if missing:
        print(f"left out, not installed or not built for this mask: {', '.join(missing)}", file=sys.stderr)
    return [engine for engine in listed if engine.name not in missing]


def prepare(work: Path, variant: str, python: Path, engines: list[Engine]) -> None:
    """Make what is missing: a checkpoint, and every engine's model of it."""
    checkpoint = work / "checkpoint"
    if not (checkpoint / "tokenizer_config.json").is_file():
        save_checkpoint(variant, checkpoint)
    source, bin_folder = str(checkpoint), python.parent
    export = [sys.executable, "cli.py", "export", "--variant", source, "--no-verify", "--target", "onnxruntime"]
    task = ["--task", "text2text-generation-with-past"]
    convert = [str(bin_folder / "ct2-transformers-converter"), "--model", source]
    commands = {
        "optimum": [str(bin_folder / "optimum-cli"), "export", "onnx", "--model", source, *task],
        "ctranslate2": [*convert, "--output_dir"],
        "ctranslate2-int8": [*convert, "--quantization", "int8", "--output_dir"],
    }
    for folder in {engine.folder: None for engine in engines}:
        if folder.startswith("t5edge-"):
            _make(work, folder, [*export, "--precision", folder.removeprefix("t5edge-"), "--out"])
        elif folder.endswith(".gguf"):
            kind = folder.removesuffix(".gguf").removeprefix("llama-")
            _make(work, folder, [str(python), str(GGUF), kind, source])
        elif folder in commands:
            _make(work, folder, commands[folder])
    for name in ("decoder_model.onnx", "decoder_with_past_model.onnx"):  # those are both in the merged decoder
        (work / "optimum" / name).unlink(missing_ok=True)


def _make(work: Path, name: str, command: list[str]) -> None:
    if not (work / name).exists():
        run([*command, str(work / name)], work / f"{name}.log", **OFFLINE)
