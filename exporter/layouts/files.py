"""Files around optimum's graphs: the merged decoder, transformers.js' folder, and the small files both clients read.

    encoder_model.onnx  decoder_model.onnx  decoder_with_past_model.onnx  decoder_model_merged.onnx
    onnx/encoder_model*.onnx  onnx/decoder_model_merged*.onnx  onnx/weights.safetensors      links to the files above
    config.json  tokenizer_config.json

An encoder alone has ``onnx/model.onnx`` instead, and the files of ``sentence``.

transformers.js looks into ``onnx/`` and tells the precision by the name. ONNX Runtime reads external data beside the
graph and refuses a path that leaves the graph's folder, unless graph and data are both links into one other folder (the
form of the hub's cache). Hard links in their place would make onnx's checker refuse our own graphs. External data of a
branch is refused through links of either kind, so quantized bundles, which have such, hold copies.

Source: transformers.js 4.3.1, ``src/models/session.js``, ``src/utils/dtypes.js``; onnxruntime 1.31.1.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir

from t5edge.bundle.files import write_json
from t5edge.bundle.precision import Precision
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.open import Checkpoint
from t5edge.exporter.graph.assemble import Graphs
from t5edge.exporter.graph.write import FILE_NAME as WEIGHTS
from t5edge.exporter.layouts.merged import merge_decoders
from t5edge.exporter.layouts.optimum import ENCODER, FIRST_STEP, LATER_STEPS
from t5edge.exporter.layouts.sentence import write_sentence_files
from t5edge.progress import Progress

MERGED = "decoder_model_merged"
ALONE = "model"
"""What optimum calls the one graph of an encoder."""
JS_FOLDER = "onnx"
JS_DTYPES = {(0, "float"): "fp32", (0, "float16"): "fp16", (8, "float"): "int8", (4, "float"): "q4"}
"""(bits of a weight, compute dtype) -> transformers.js' name of the precision. The others have no kernels there."""
TOKENIZER_KEYS = (
    "pad_token",
    "eos_token",
    "unk_token",
    "model_max_length",
    "padding_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
)
"""Entries of tokenizer_config.json that every version of transformers reads alike."""


def js_dtype(precision: Precision) -> str:
    """What transformers.js calls this precision.

    Raises:
        UserError: its clients cannot run it.
    """
    name = JS_DTYPES.get((precision.weight_bits, precision.compute))
    if name is None:
        raise UserError(
            f"--layout optimum does not go with --precision {precision.name}: its clients run ONNX Runtime, which "
            f"has no {precision.compute} kernels on CPUs. Choose fp32, fp16 or a quantized precision, or leave out "
            "--layout."
        )
    return name


def check_layout(layout: str, precision: Precision) -> None:
    """Refuse a layout whose clients cannot run this precision, before any work.

    Raises:
        UserError: they cannot.
    """
    if layout == "optimum":
        js_dtype(precision)


def write_layout(
    layout: str, folder: Path, graphs: Graphs, checkpoint: Checkpoint, precision: Precision, progress: Progress
) -> None:
    """Write the files of another layout; nothing for our own."""
    if layout == "t5edge":
        return
    if checkpoint.architecture.encoder_alone:
        write_encoder_files(folder, checkpoint)
        return
    write_optimum_files(folder, graphs, checkpoint, precision)
    weights = folder / JS_FOLDER / WEIGHTS
    if not weights.is_symlink():
        progress.message(f"layout {layout}: {weights.stat().st_size / 1e6:.1f} MB of weights are copied, not linked")


def write_optimum_files(folder: Path, graphs: Graphs, checkpoint: Checkpoint, precision: Precision) -> None:
    """Write what the layout needs besides the three graphs, whose weights lie in ``folder`` already."""
    a, dtype = checkpoint.architecture, js_dtype(precision)
    merged = merge_decoders(graphs.others[FIRST_STEP], graphs.others[LATER_STEPS], a.d_model // a.num_heads)
    ir.save(merged, folder / f"{MERGED}.onnx")
    suffix = "" if dtype == "fp32" else f"_{dtype}"
    (folder / JS_FOLDER).mkdir()
    place = shutil.copyfile if precision.quantized else link
    for name in (ENCODER, MERGED):
        place(folder / f"{name}.onnx", folder / JS_FOLDER / f"{name}{suffix}.onnx")
    place(folder / WEIGHTS, folder / JS_FOLDER / WEIGHTS)
    write_json(folder / "config.json", client_config(checkpoint, dtype))
    if (folder / "tokenizer.json").is_file():
        write_json(folder / "tokenizer_config.json", tokenizer_config(checkpoint, folder / "tokenizer.json"))


def write_encoder_files(folder: Path, checkpoint: Checkpoint) -> None:
    """An encoder alone as optimum's ``ORTModelForFeatureExtraction`` looks for it; sentence-transformers' files."""
    (folder / JS_FOLDER).mkdir()
    link(folder / "encoder.onnx", folder / JS_FOLDER / f"{ALONE}.onnx")
    link(folder / WEIGHTS, folder / JS_FOLDER / WEIGHTS)
    write_json(folder / "config.json", client_config(checkpoint, "fp32"))
    if (folder / "tokenizer.json").is_file():
        write_json(folder / "tokenizer_config.json", tokenizer_config(checkpoint, folder / "tokenizer.json"))
    if checkpoint.sentence is not None:
        write_sentence_files(folder, checkpoint)


def link(stored: Path, name: Path) -> None:
    """Let ``name``, one folder below, stand for ``stored``; a copy where the file system has no symbolic links."""
    try:
        name.symlink_to(Path("..") / stored.name)
    except (OSError, NotImplementedError):
        shutil.copyfile(stored, name)


def client_config(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """config.json with what the clients want spelled out, and the precision that transformers.js shall look for."""
    implied = {
        "model_type": "umt5" if checkpoint.architecture.per_layer_bias else "t5",
        "is_encoder_decoder": True,
        "num_decoder_layers": checkpoint.architecture.decoder_layers,
    }
    given = {key: value for key, value in checkpoint.config.items() if value is not None}
    return {**implied, **given, "transformers.js_config": {"dtype": dtype}}


def tokenizer_config(checkpoint: Checkpoint, tokenizer: Path) -> dict[str, Any]:
    """tokenizer_config.json for the bundle's ``tokenizer.json``, which holds everything but the roles of the tokens."""
    from tokenizers import Tokenizer

    path = checkpoint.file("tokenizer_config.json")
    given = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    known = Tokenizer.from_file(str(tokenizer))
    a = checkpoint.architecture
    roles = {"pad_token": known.id_to_token(a.pad_token_id), "eos_token": known.id_to_token(a.eos_token_id)}
    kept = {key: given[key] for key in TOKENIZER_KEYS if given.get(key) is not None}
    named = {key: token for key, token in roles.items() if token is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, **kept}
