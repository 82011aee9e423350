"""An encoder alone as optimum and sentence-transformers read it: ``SentenceTransformer(folder, backend="onnx")``.

    onnx/model.onnx  onnx/weights.safetensors                      links to the files above them
    config.json  tokenizer_config.json
    modules.json  1_Pooling/  2_Dense/  ...                        of a sentence encoder; the library pools by itself

The settings are in the form of sentence-transformers 2 to 5, which 6 reads too: optimum-onnx 0.1.0 goes with 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.files import write_json
from t5edge.bundle.records import SentenceFacts, SentenceStep
from t5edge.exporter.checkpoint.checkpoint import Checkpoint
from t5edge.exporter.checkpoint.sentence_files import IDENTITY, MODULES, POOLINGS

if TYPE_CHECKING:
    import torch

TYPE = "sentence_transformers.models."
Module = tuple[str, dict[str, Any] | None, dict[str, "torch.Tensor"]]
"""Its class, its settings, its weights."""


def write_sentence_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Everything that sentence-transformers reads besides the graph, config.json and the tokenizer."""
    from safetensors.torch import save_file

    assert checkpoint.sentence is not None
    facts = checkpoint.sentence.facts
    entries = []
    for index, (kind, settings, weights) in enumerate(_modules(facts, checkpoint)):
        path = f"{index}_{kind}" if index else ""
        entries.append({"idx": index, "name": str(index), "path": path, "type": f"{TYPE}{kind}"})
        (folder / path).mkdir(exist_ok=True)
        if settings is not None:
            write_json(folder / path / ("config.json" if index else "sentence_bert_config.json"), settings)
        if weights:
            save_file(weights, folder / path / "model.safetensors")
    write_json(folder / MODULES, entries)
    prompts = {"prompts": facts.prompts, "default_prompt_name": facts.default_prompt}
    write_json(folder / "config_sentence_transformers.json", prompts)


def _modules(facts: SentenceFacts, checkpoint: Checkpoint) -> Iterator[Module]:
    yield "Transformer", {"max_seq_length": facts.max_length, "do_lower_case": facts.lower_case}, {}
    width = checkpoint.architecture.d_model
    yield "Pooling", {"word_embedding_dimension": width, **_pooling(facts), "include_prompt": facts.include_prompt}, {}
    width *= len(facts.pooling)
    for step in facts.steps:
        if step.kind == "normalize":
            yield "Normalize", None, {}
            continue
        names = ("weight", *(("bias",) if step.bias else ()))
        weights = {f"linear.{name}": checkpoint.read(f"{step.weights}{name}").contiguous() for name in names}
        yield "Dense", _dense(step, width), weights
        width = step.size


def _pooling(facts: SentenceFacts) -> dict[str, Any]:
    """One switch for each mode; several in another order than that of the switches can only be listed."""
    known = [mode for mode in POOLINGS.values() if mode in facts.pooling]
    if known != list(facts.pooling):
        return {"pooling_mode": list(facts.pooling)}
    return {switch: mode in facts.pooling for switch, mode in POOLINGS.items()}


def _dense(step: SentenceStep, width: int) -> dict[str, Any]:
    activation = IDENTITY if step.activation is None else f"torch.nn.modules.activation.{step.activation}"
    return {"in_features": width, "out_features": step.size, "bias": step.bias, "activation_function": activation}
