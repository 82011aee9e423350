"""PyTorch with the weights that a bundle stores: float32, each tensor as it is after rounding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.exporter.reference.whole import WholeReference
from t5edge.parity.exact.keys import StackKey
from t5edge.parity.exact.places import SECOND_NAME
from t5edge.parity.exact.stored import StoredWeights

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.sentence import SentenceModules

TABLE = "shared.weight"


@dataclass(frozen=True)
class StoredTensors:
    """The recovered tensors where a checkpoint is expected; what is not stored is the checkpoint's own."""

    stored: StoredWeights
    tensors: dict[str, torch.Tensor]

    @property
    def architecture(self) -> Architecture:
        return self.stored.architecture

    @property
    def generation_config(self) -> dict[str, Any]:
        return self.stored.checkpoint.generation_config

    @property
    def sentence(self) -> SentenceModules | None:
        return self.stored.checkpoint.sentence

    def names(self) -> list[str]:
        return self.stored.checkpoint.names()

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name] if name in self.tensors else self.stored.checkpoint.read(name)


def stored_reference(stored: StoredWeights) -> WholeReference:
    """The model of transformers with the stored weights, in float32.

    A table that is both embedding and output layer may be stored in two ways, and is then two tensors here.
    """
    import torch

    embedding, output = tables(stored.folder, stored.architecture.stacks[-1])
    found: dict[str, torch.Tensor] = {}
    head = None
    for matrix, key in stored.matrices():
        for recovered in stored.recover(matrix, key):
            values = recovered.values.float().contiguous()
            if recovered.name == TABLE:
                head = values if matrix == output else head
                if matrix != embedding:
                    continue
            if recovered.name not in found or not (isinstance(key.base, StackKey) and key.base.smoothed):
                found[recovered.name] = values
    model = WholeReference(StoredTensors(stored, found), torch.float32)
    if stored.architecture.tied and head is not None and not stored.architecture.encoder_alone:
        model.model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return model


def tables(folder: Path, graph: str) -> tuple[str, str]:
    """Names of the stored tensors that ``graph`` embeds tokens with, and that it multiplies by for the logits."""
    embedding = output = TABLE
    for node in ir.load(folder / f"{graph}.onnx").graph:
        for value in node.inputs:
            if value is None or value.const_value is None or TABLE not in (value.name or ""):
                continue
            name = str(value.name).removeprefix(SECOND_NAME)
            if ".scales(" in name:
                continue
            if node.op_type == "Gather":
                embedding = name
            else:
                output = name
    return embedding, output
