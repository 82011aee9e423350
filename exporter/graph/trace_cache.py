"""Traced blocks and bucket tables kept in the user's cache: they follow from a structure and from versions alone.

A block is kept as torch traced it, before anything of ours changed it, as ONNX whose weights are inputs. The key covers
the sizes that a trace depends on, the versions of what traces, and the source of the traced modules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.files import write_bytes, write_json
from t5edge.kernels.block import OPSET, BlockKind
from t5edge.runtime.user_cache import cache_folder

DEPENDS_ON = ("d_model", "d_kv", "d_ff", "num_heads", "activation", "gated", "norm_epsilon")
"""Facts of an architecture that change a trace."""
SOURCES = ("trace.py", "generic.py")
PACKAGES = ("torch", "transformers", "onnxscript", "onnx-ir", "onnx")


def cached_trace(architecture: Architecture, kind: BlockKind, tracer: Callable[[], ir.Model]) -> ir.Model:
    """What ``tracer`` gives: a model whose weights are initializers without data; from the cache where it is there."""
    facts = [kind, OPSET, *(getattr(architecture, name) for name in DEPENDS_ON)]
    path = _path("blocks", facts, "onnx")
    with suppress(Exception):  # not there, cut off, or of another hand: traced anew
        return from_bytes(path.read_bytes())
    model = tracer()
    with suppress(OSError):  # a cache that cannot be written is no error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, to_bytes(model))
    return model


def cached_numbers(name: str, facts: list[Any], compute: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    """What ``compute`` gives; from the cache where it is there."""
    path = _path(name, facts, "json")
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, list) and all(type(number) is int for number in found):
            return tuple(found)
    numbers = compute()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, numbers)
    return numbers


def _path(name: str, facts: list[Any], suffix: str) -> Path:
    source = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    versions = {package: metadata.version(package) for package in PACKAGES}
    key = json.dumps([name, facts, versions, hashlib.sha256(source).hexdigest()], sort_keys=True)
    return cache_folder() / "traces" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.{suffix}"


def to_bytes(model: ir.Model) -> bytes:
    """A traced block as ONNX, its weights as inputs."""
    model = model.clone()
    for name, value in list(model.graph.initializers.items()):
        if is_weight(name):
            model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
    data: bytes = ir.to_proto(model).SerializeToString()
    return data


def from_bytes(data: bytes) -> ir.Model:
    """The block of ``to_bytes``; its weights are initializers without data."""
    model = ir.from_proto(onnx.ModelProto.FromString(data))
    for value in list(model.graph.inputs):
        if value.name is not None and is_weight(value.name):
            model.graph.inputs.remove(value)
            model.graph.initializers[value.name] = value  # without data, as torch leaves weights on the meta device
    return model


def is_weight(name: str) -> bool:
    """Whether an initializer of a traced block is a weight of the model: its name has the block's path."""
    return "block." in name
