"""How much memory one export takes at its peak, and how much this machine has left."""

from __future__ import annotations

import json
import math
from pathlib import Path

import psutil

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.precision import Precision
from t5edge.errors import UserError
from t5edge.exporter.family.config import architecture_from_config
from t5edge.exporter.family.variants import find_variant, look_up_variant

BASE_BYTES = int(1.5 * 2**30)
"""Of any export: the libraries, the tracer, a layer at work."""
STREAMED_TENSORS = 2
"""Largest tensors that are in memory at a time while weights are streamed (float32)."""
VERIFIED_COPIES = 3
"""Float32 models in memory during verification: PyTorch's, its 16-bit copy and ONNX Runtime's, rounded up."""
UNKNOWN = "t5-large"
"""Stands for checkpoints whose architecture is known only after their download."""
USABLE = 0.9
"""Share of the free memory that is planned with."""


def peak_bytes(architecture: Architecture, verify: bool) -> int:
    """Estimate of one export's peak, bytes."""
    largest = 4 * max(math.prod(shape) for shape in architecture.tensor_shapes().values())
    return BASE_BYTES + STREAMED_TENSORS * largest + (VERIFIED_COPIES * 4 * architecture.parameters if verify else 0)


def verification_fits(architecture: Architecture) -> bool:
    """Whether the whole model can be verified in what is free now; otherwise PyTorch runs block by block."""
    return peak_bytes(architecture, verify=True) <= USABLE * free_bytes()


def bundle_fits(architecture: Architecture, precision: Precision) -> bool:
    """Whether ONNX Runtime can run a whole bundle in what is free now, with weights mapped from the file where it can.

    Measured at t5-base's shape, bytes of a weight: float32 stays in the file; 16 bits are widened on the CPU, 5.3;
    integers are packed, 1.6 for 8 bits.
    """
    packed = 2 * precision.bytes_per_weight if precision.quantized else 0.0
    per_weight = packed if precision.compute == "float" else 6.0
    return per_weight * architecture.parameters <= USABLE * free_bytes()


def known_architecture(variant: str) -> Architecture:
    """The architecture as far as it is known without a download."""
    config = Path(variant).expanduser() / "config.json"
    if config.is_file():
        try:
            return architecture_from_config(json.loads(config.read_text(encoding="utf-8")))
        except (UserError, ValueError, OSError):
            return find_variant(UNKNOWN).architecture  # the export itself says what is wrong
    row = look_up_variant(variant) or find_variant(UNKNOWN)
    return row.architecture


def free_bytes() -> int:
    """Memory that new processes can have now: what the system calls available, within the container's limit."""
    available, left = int(psutil.virtual_memory().available), _container_left()
    return available if left is None else min(available, left)


def _container_left() -> int | None:
    """What a control group (version 2) leaves; None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
