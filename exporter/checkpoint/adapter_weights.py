"""One weight with what an adapter learnt about it: float32 arithmetic, rounded by nobody here.

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
    """The changed weight [out, in], float32, in memory of its own; ``weight`` is only read."""
    import torch

    wide = {name: part.float() for name, part in parts.items()}
    if WHOLE in wide:
        return wide[WHOLE]
    base = wide.get(BASE, weight).float()
    if kind == "IA3":
        return base * wide["ia3_l"]
    if kind == "LORA":
        merged = torch.addmm(base, wide["lora_B"], wide["lora_A"], alpha=scale)
        if "lora_magnitude_vector" in wide:
            merged *= (wide["lora_magnitude_vector"] / torch.linalg.vector_norm(merged, dim=1))[:, None]
        return merged
    return torch.add(base, _hadamard(wide) if kind == "LOHA" else _kronecker(wide), alpha=scale)


def _hadamard(parts: Parts) -> torch.Tensor:
    product = parts["hada_w1_a"] @ parts["hada_w1_b"]
    product *= parts["hada_w2_a"] @ parts["hada_w2_b"]
    return product


def _kronecker(parts: Parts) -> torch.Tensor:
    import torch

    sides = ("lokr_w1", "lokr_w2")
    first, second = (parts[side] if side in parts else parts[f"{side}_a"] @ parts[f"{side}_b"] for side in sides)
    return torch.kron(first, second)
