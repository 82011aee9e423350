"""Which graphs a bundle has; loads nothing, so that the options can name it."""

from __future__ import annotations

from dataclasses import dataclass

from t5edge.bundle.manifest import PORTABLE_OPSET, STANDARD_OPSET
from t5edge.bundle.precision import Precision
from t5edge.errors import UserError


@dataclass(frozen=True)
class Form:
    """Which graphs a bundle has besides encoder and decoder.

    Attributes:
        cache: how the decoder of engines keeps keys and values: concat, in-place or both.
        layout: t5edge, or optimum for its graphs beside ours.
        max_target_length: capacity of the engines' in-place cache.
        opset: of every graph; the portable one has neither fused operators nor a cache that is written in place.
    """

    cache: str
    layout: str
    max_target_length: int
    opset: int = STANDARD_OPSET

    @property
    def portable(self) -> bool:
        return self.opset == PORTABLE_OPSET


def check_portable(form: Form, row: Precision) -> None:
    """Refuse what the portable opset cannot hold.

    Raises:
        UserError: 4-bit weights, or a cache that is written in place.
    """
    if not form.portable:
        return
    if row.weight_bits == 4:
        raise UserError(
            f"--precision {row.name} and --opset {form.opset}: 4-bit weights begin with opset 21; use int8-weight."
        )
    if form.cache != "concat":
        raise UserError(
            f"--cache {form.cache} and --opset {form.opset}: a cache written in place (TensorScatter) begins with "
            "opset 24; leave out --cache."
        )
