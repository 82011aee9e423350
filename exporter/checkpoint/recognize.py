"""Folders and tensors that are not a plain encoder-decoder checkpoint: named for what they are, with what to do.

A prefix that a wrapper has put before every name (DDP, torch.compile, Lightning, PEFT) is taken off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t5edge.bundle.architecture import HEADS
from t5edge.errors import UserError
from t5edge.exporter.family.config import head_of

if TYPE_CHECKING:
    import torch

    from t5edge.exporter.checkpoint.stores import StoredTensor, TensorStore

GENERATORS = (
    "T5ForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
    "T5WithLMHeadModel",
)
"""Classes whose checkpoints hold an encoder, a decoder and an output layer."""
ENCODERS = ("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel")
"""Classes whose checkpoints hold an encoder alone."""
ONLY_GENERATORS = (
    f"Models that generate text, plain encoders, and heads for tokens, spans and whole texts are exported; pass a "
    f"{GENERATORS[0]}, a {ENCODERS[0]} or a T5ForTokenClassification of the same family."
)
PREFIXES = ("base_model.model.", "module.", "_orig_mod.", "model.", "transformer.")
FIRST = ("shared.", "encoder.", "decoder.", "lm_head.")


def require_generator(config: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a model that neither generates text with this architecture nor is its encoder, alone or below a head.

    Tensors decide; the config's class only names it.

    Raises:
        UserError: an encoder has an output layer or a head of its own, or a foreign class brings other tensors.
    """
    known = list(names)
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes and isinstance(classes[0], str) else "model"
    foreign = [entry for entry in known if not entry.startswith(FIRST)]
    head = head_of(known)
    if head and {*foreign} == {*HEADS[head]}:
        return
    if not any(entry.startswith("decoder.block.") for entry in known) and any(map(_is_encoder, known)):
        beside = foreign or [entry for entry in known if entry.startswith(("decoder.", "lm_head."))]
        if not beside:
            return
        raise UserError(f"{where} is a {name}: an encoder and {beside[0]} without a decoder. {ONLY_GENERATORS}")
    if name in GENERATORS or name == "model" or not foreign:
        return
    raise UserError(f"{where} is a {name} with tensors of its own ({', '.join(foreign[:2])}). {ONLY_GENERATORS}")


def _is_encoder(name: str) -> bool:
    return name.startswith("encoder.block.")


def require_checkpoint(folder: Path) -> None:
    """Refuse a folder that is recognisably something else than a checkpoint.

    Raises:
        UserError: saying what it is and what to do.
    """
    found = _kind_of(folder)
    if found is not None:
        raise UserError(f"{folder} {found}")


def _kind_of(folder: Path) -> str | None:
    names = {path.name for path in folder.iterdir()}
    if "model_index.json" in names:
        parts = sorted(name for name in names if name.startswith("text_encoder") and (folder / name).is_dir())
        inside = f" ({', '.join(parts)})" if parts else ""
        return f"is a diffusers pipeline; name one of its text encoders{inside} with --subfolder."
    if any(name in names for name in ("model.safetensors", "pytorch_model.bin")):
        return None
    return _kind_of_weights(names)


def _kind_of_weights(names: set[str]) -> str | None:
    """What the folder holds in place of weights that can be read."""
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in names):
        return "is a DeepSpeed checkpoint; gather it with its zero_to_fp32.py, then save_pretrained()."
    if any(name.startswith("pytorch_model_fsdp") or name.endswith(".distcp") for name in names):
        return "is an FSDP checkpoint; gather it with accelerate merge-weights, then save_pretrained()."
    lightning = sorted(name for name in names if name.endswith(".ckpt"))
    if lightning:
        return (
            f"holds a Lightning checkpoint ({lightning[0]}); load it in its module and call "
            "model.save_pretrained() on the transformers model inside."
        )
    variants = sorted(name for name in names if name.startswith(("model.", "pytorch_model.")) and name.count(".") > 1)
    variants = [name for name in variants if name.endswith((".safetensors", ".bin"))]
    if variants:
        plain = f"{variants[0].split('.')[0]}.{variants[0].rsplit('.', 1)[1]}"
        return f"holds its weights as the variant {variants[0]}; rename it to {plain}."
    return None


def require_tensors(store: TensorStore, where: str) -> None:
    """Refuse tensors without elements: what DeepSpeed's ZeRO-3 leaves in a state dict that was not gathered.

    Raises:
        UserError: all of them are empty.
    """
    tensors = store.tensors.values()
    if tensors and all(0 in tensor.shape for tensor in tensors):
        raise UserError(
            f"{where} holds placeholders of DeepSpeed's ZeRO-3, tensors without elements; gather the weights with "
            "zero_to_fp32.py, or set stage3_gather_16bit_weights_on_model_save."
        )


def unwrapped(store: TensorStore) -> TensorStore:
    """``store`` without the prefix that a wrapper put before every name; itself where there is none.

    The heads of transformers' classifiers stand beside ``transformer.`` and keep their names.
    """
    prefix = _common_prefix(store.tensors)
    return store if prefix is None else UnwrappedStore(store, prefix)


def _common_prefix(names: Iterable[str]) -> str | None:
    known, found = list(names), ""
    while known and not any(name.startswith(FIRST) for name in known):
        inner = [name for name in known if not name.startswith(("classifier.", "classification_head.", "qa_outputs."))]
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in inner)), None)
        if prefix is None or not inner:
            return None
        known, found = [name.removeprefix(prefix) for name in inner], found + prefix
    return found or None


class UnwrappedStore:
    """A ``TensorStore`` whose names lose ``prefix``."""

    def __init__(self, store: TensorStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return {name.removeprefix(self._prefix): tensor for name, tensor in self._store.tensors.items()}

    def read(self, name: str) -> torch.Tensor:
        return self._store.read(self._stored(name))

    def same_values(self, first: str, second: str) -> bool:
        return self._store.same_values(self._stored(first), self._stored(second))

    def fingerprint(self) -> Any:
        return self._store.fingerprint()

    def _stored(self, name: str) -> str:
        return self._prefix + name if self._prefix + name in self._store.tensors else name
