"""Manifests and engine records without a bundle around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny_models import find_tiny_model
from t5edge.bundle.engine_record import EngineAttention, EngineRecord
from t5edge.bundle.manifest import Manifest
from t5edge.bundle.ports import Limits, decoder_ports, encoder_ports
from t5edge.bundle.precision import precision


def tiny_manifest(**facts: Any) -> Manifest:
    """The manifest of a tiny model in fp32 with ``facts`` in place of what it says."""
    a = find_tiny_model("v1.1-tiny").architecture
    ports = {
        "encoder": encoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.d_model, "float"),
        "decoder": decoder_ports(a.decoder_layers, a.num_heads, a.d_kv, a.vocab_size, "float"),
    }
    given = {"variant": "x", "precision": precision("fp32"), "generation": {}, "limits": Limits(), "files": {}, **facts}
    return Manifest(architecture=a, ports=ports, **given)


def write_manifest(folder: Path, **facts: Any) -> Manifest:
    """Write ``tiny_manifest(**facts)`` with the files of ``folder``."""
    manifest = tiny_manifest(**facts).with_files(folder)
    manifest.write(folder)
    return manifest


def engine_record(**facts: Any) -> EngineRecord:
    """An encoder engine of tensorrt-rtx for 8.6 with ``facts`` in place of what its record says."""
    given = {
        "target": "tensorrt-rtx",
        "version": "1.0",
        "compute_capability": "8.6",
        "graph": "encoder",
        "sources": {},
        "no_fuse": False,
        "separate_weights": False,
        "limits": Limits(),
        "file": "engines/tensorrt-rtx/8.6/encoder.engine",
        "bytes": 1,
        "sha256": "0" * 64,
        "seconds": 1.0,
        "attention": EngineAttention("fused", 1, 1),
        "profiles": ({"batch": (1, 1, 8)},),
        **facts,
    }
    return EngineRecord(**given)
