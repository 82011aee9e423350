"""The grammar of T5-Efficient names: ``t5-efficient-<size>[-<key><value>]...``.

    t5-efficient-small                       the plain size
    t5-efficient-small-nl16                  16 layers in both stacks
    t5-efficient-small-el8-dl2-ff1000        8 encoder layers, 2 decoder layers, d_ff 1024

After "Scale Efficiently" (https://arxiv.org/abs/2109.10686), table 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from t5edge.errors import UserError

EFFICIENT_NAME = re.compile(r"(?:google/)?t5-efficient-([a-z]+)((?:-[a-z]+\d*)*)")
EFFICIENT_KEYS = {
    "nl": ("encoder_layers", "decoder_layers"),
    "el": ("encoder_layers",),
    "dl": ("decoder_layers",),
    "ff": ("d_ff",),
    "dm": ("d_model",),
    "kv": ("d_kv",),
    "nh": ("num_heads",),
}
"""Key in a T5-Efficient name -> fields it sets; ``nl`` comes first, so that ``el`` and ``dl`` refine it."""
THOUSANDS = ("ff", "dm")
"""Keys whose multiples of 1000 mean multiples of 1024."""
UNPUBLISHED_KEYS = {"sh": "heads that share their projections", "skv": "shared keys and values"}


def parse_efficient_name(name: str, sizes: Iterable[str]) -> tuple[str, dict[str, int]] | None:
    """The size in the name and the fields of `Architecture` that its keys set; None for other names.

    Raises:
        UserError: an unknown size or key, a key twice or without a value, or one that was never published.
    """
    match = EFFICIENT_NAME.fullmatch(name.lower())
    if match is None:
        return None
    size, options = match[1], match[2].split("-")[1:]
    if size not in sizes:
        raise UserError(f"'{name}': '{size}' is no T5-Efficient size; expected one of {', '.join(sizes)}.")
    values = _key_values(name, options)
    return size, {field: values[key] for key, fields in EFFICIENT_KEYS.items() if key in values for field in fields}


def _key_values(name: str, options: Iterable[str]) -> dict[str, int]:
    values: dict[str, int] = {}
    for option in options:
        key = option.rstrip("0123456789")
        number = option[len(key) :]
        if key in UNPUBLISHED_KEYS:
            raise UserError(
                f"'{name}': '{key}' stands for {UNPUBLISHED_KEYS[key]}; such checkpoints were never "
                f"published for transformers. Expected keys: {', '.join(EFFICIENT_KEYS)}."
            )
        if key not in EFFICIENT_KEYS or not number or int(number) == 0 or key in values:
            raise UserError(
                f"'{name}': cannot read '-{option}'; expected each of {', '.join(EFFICIENT_KEYS)} "
                "at most once, followed by a positive number, as in t5-efficient-small-el8-dl2."
            )
        thousands = key in THOUSANDS and int(number) % 1000 == 0
        values[key] = int(number) // 1000 * 1024 if thousands else int(number)
    return values
