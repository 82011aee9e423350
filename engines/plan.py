"""Read from a built plan which kernel each attention became, without a GPU and without deserializing it.

A plan carries its program as text, one function per kernel with the ONNX nodes it covers:

    function={ name=_gemm_mha_v2 fqn=... layers="[ONNX Layer: decoder.block.0.block/Attention_33]..." swap_ab=false }

``_gemm_mha_v2`` is the flash kernel, ``_gemv_mha_v1`` the one for a single query row (found by building with
TensorRT-RTX 1.7).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from t5edge.bundle.engine_record import EngineAttention

FUSED = re.compile(r"_(?:gemm|gemv)_mha_v\d+")
START = rb"function=\{ name="
WINDOW = 1 << 20
"""Bytes that one function's text may take."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of the program: its name and the ONNX nodes it covers."""

    name: str
    nodes: tuple[str, ...]


def read_kernels(plan: bytes | memoryview) -> tuple[Kernel, ...]:
    """Every kernel of the program, in order; with several profiles, those of the first profile come first."""
    starts = [found.end() for found in re.finditer(START, plan)]
    kernels = []
    for start, following in pairwise([*starts, len(plan)]):
        text = bytes(plan[start : min(following, start + WINDOW)]).decode("latin1")
        layers = re.search(r' layers="([^"]*)"', text)
        if layers is not None:
            nodes = re.findall(r"\[ONNX Layer: ([^\]]*)\]", layers.group(1))
            kernels.append(Kernel(text.split(" ", 1)[0], tuple(nodes)))
    return tuple(kernels)


def prove_attention(form: str, kernels: Sequence[Kernel], attentions: Sequence[str], profiles: int) -> EngineAttention:
    """Match fused kernels with the ``Attention`` nodes' names; each must occur once per profile."""
    if not kernels:
        return EngineAttention(form, len(attentions) * profiles, None)
    fused = [kernel for kernel in kernels if FUSED.fullmatch(kernel.name)]
    found = {name: sum(name in kernel.nodes for kernel in fused) for name in attentions}
    names = [kernel.name for kernel in fused]
    return EngineAttention(
        form,
        len(attentions) * profiles,
        len(fused),
        tuple(name for name, count in found.items() if count < profiles),
        {name: names.count(name) for name in sorted(set(names))},
    )
