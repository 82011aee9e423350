"""One weight with what an adapter learnt about it.

    LORA    W + s B A                                        DoRA: rows scaled to the learnt magnitudes
    LOHA    W + s (A1 B1) * (A2 B2)                          https://arxiv.org/abs/2108.06098
    LOKR    W + s A (x) B        A, B whole or of low rank   https://arxiv.org/abs/2212.10650
    IA3     W * l                along rows or columns       https://arxiv.org/abs/2205.05638
    whole   the trained weight itself (``modules_to_save``)

W is [out, in], as transformers stores it, or as the file of the adapter has it (``base_layer``, which peft writes for
an output layer); s is ``AdapterSettings.scale_of``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Parts = Mapping[str, torch.Tensor]

Shape = tuple[int, ...]
WHOLE, BASE = "weight", "base_layer"
"""The part that replaces a weight; the part that replaces what is changed."""
PARTS = {
    "LORA": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "LOHA": ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    "LOKR": ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    "IA3": ("ia3_l",),
}
"""What each type of adapter may store for one module."""
NUMBERS_AT_A_TIME = 1 << 22


def fits(kind: str, shapes: Mapping[str, Shape], weight: Shape, rank: int) -> bool:
    """Whether parts of these shapes, of this rank, make a change of a weight of shape ``weight``."""
    if shapes.keys() == {WHOLE}:
        return shapes[WHOLE] == weight
    if len(weight) != 2 or WHOLE in shapes or shapes.get(BASE, weight) != weight:
        return False
    if kind == "IA3":
        return shapes.get("ia3_l") in ((weight[0], 1), (1, weight[1]))
    if kind == "LORA":
        magnitude = shapes.get("lora_magnitude_vector", weight[:1])
        return magnitude == weight[:1] and _product(shapes, "lora_B", "lora_A", rank) == weight
    if kind == "LOHA":
        return all(_product(shapes, f"hada_w{side}_a", f"hada_w{side}_b", rank) == weight for side in (1, 2))
    first, second = (
        shapes.get(f"lokr_w{side}") or _product(shapes, f"lokr_w{side}_a", f"lokr_w{side}_b", rank) for side in (1, 2)
    )
    return bool(first and second) and tuple(a * b for a, b in zip(first or (), second or (), strict=False)) == weight


def _product(shapes: Mapping[str, Shape], left: str, right: str, rank: int) -> Shape | None:
    """The shape of ``left @ right``; None where one is missing or their inner sizes are not ``rank``."""
    a, b = shapes.get(left, ()), shapes.get(right, ())
    return (a[0], b[1]) if len(a) == len(b) == 2 and a[1] == b[0] == rank else None


def merge(kind: str, weight: torch.Tensor, parts: Parts, scale: float) -> torch.Tensor:
    """The changed weight [out, in], float32, in memory of its own; ``weight`` is only read.

    Computed in float64, some rows at a time, and rounded once: whatever the machine and its threads, the same numbers.
    """
    import torch

    if WHOLE in parts:
        return parts[WHOLE].float()
    base = parts.get(BASE, weight)
    if kind == "IA3":
        return base.float() * parts["ia3_l"].float()
    wide = {name: part.double() for name, part in parts.items() if name != BASE}
    merged = torch.empty(base.shape)
    step = max(1, NUMBERS_AT_A_TIME // base.shape[1])
    for start in range(0, base.shape[0], step):
        rows = slice(start, min(start + step, base.shape[0]))
        changed = base[rows].double().add_(CHANGES[kind](wide, rows), alpha=scale)
        if "lora_magnitude_vector" in wide:
            changed *= (wide["lora_magnitude_vector"][rows] / torch.linalg.vector_norm(changed, dim=1))[:, None]
        merged[rows] = changed
    return merged


def _low_rank(parts: Parts, rows: slice) -> torch.Tensor:
    return parts["lora_B"][rows] @ parts["lora_A"]


def _hadamard(parts: Parts, rows: slice) -> torch.Tensor:
    return (parts["hada_w1_a"][rows] @ parts["hada_w1_b"]) * (parts["hada_w2_a"][rows] @ parts["hada_w2_b"])


def _kronecker(parts: Parts, rows: slice) -> torch.Tensor:
    import torch

    sides = ("lokr_w1", "lokr_w2")
    first, second = (parts[side] if side in parts else parts[f"{side}_a"] @ parts[f"{side}_b"] for side in sides)
    height = second.shape[0]
    begin, end = rows.start // height, -(-rows.stop // height)
    return torch.kron(first[begin:end], second)[rows.start - begin * height : rows.stop - begin * height]


CHANGES = {"LORA": _low_rank, "LOHA": _hadamard, "LOKR": _kronecker}
"""What is added to some rows of a weight, before it is scaled: float64 [rows, in]."""
