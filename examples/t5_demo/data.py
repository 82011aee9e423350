"""Prompts, targets and the held-out split of the t5-demo task: numbers to words and back.

Four kinds of example, one per direction and language, for whole numbers in ``[0, LIMIT)``::

    spell 1984                                             -> one thousand, nine hundred and eighty-four
    spell de 1984                                          -> eintausendneunhundertvierundachtzig
    read one thousand, nine hundred and eighty-four        -> 1984
    read de eintausendneunhundertvierundachtzig            -> 1984

The wording is that of the ``num2words`` package, unchanged.  A number ``n >= 100`` is held out, in every
direction and language, when ``crc32(str(n)) % 50 == 0``: about 2 % of the numbers, never trained on.
"""

from __future__ import annotations

import random
import zlib
from functools import lru_cache

LIMIT = 1_000_000
KINDS = ("spell", "read")
LANGS = ("en", "de")
HELD_OUT_MODULUS = 50
HELD_OUT_MIN = 100
UNIFORM_SHARE = 0.5


@lru_cache(maxsize=65536)
def words(lang: str, n: int) -> str:
    """The name of ``n`` in ``lang`` ("en" or "de"), exactly as num2words gives it."""
    from num2words import num2words

    return str(num2words(n, lang=lang))


def prompt(kind: str, lang: str, n: int) -> str:
    """The model's input for number ``n``: kind "spell" or "read", lang "en" or "de"."""
    mark = "" if lang == "en" else f"{lang} "
    return f"{kind} {mark}{n if kind == 'spell' else words(lang, n)}"


def target(kind: str, lang: str, n: int) -> str:
    """The text the model should answer ``prompt(kind, lang, n)`` with."""
    return words(lang, n) if kind == "spell" else str(n)


def is_held_out(n: int) -> bool:
    """Whether ``n`` is kept out of training."""
    return n >= HELD_OUT_MIN and zlib.crc32(str(n).encode()) % HELD_OUT_MODULUS == 0


def held_out(count: int, seed: int) -> list[int]:
    """``count`` different held-out numbers, drawn uniformly with ``seed``."""
    pool = [n for n in range(LIMIT) if is_held_out(n)]
    return random.Random(seed).sample(pool, count)


def training_number(rng: random.Random) -> int:
    """One number not held out: half the draws uniform below LIMIT, half log-uniform (small numbers, zero)."""
    while True:
        uniform = rng.random() < UNIFORM_SHARE
        n = rng.randrange(LIMIT) if uniform else int(float(LIMIT) ** rng.random()) - 1
        if not is_held_out(n):
            return n


def training_pairs(kind: str, count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` (prompt, target) pairs of one kind, the languages in turn, numbers drawn with ``seed``."""
    rng = random.Random(seed)
    pairs = []
    for i in range(count):
        lang, n = LANGS[i % len(LANGS)], training_number(rng)
        pairs.append((prompt(kind, lang, n), target(kind, lang, n)))
    return pairs


def calibration_prompts(count: int, seed: int) -> list[str]:
    """``count`` prompts about training numbers, the four kinds in turn, drawn with ``seed``."""
    rng = random.Random(seed)
    combos = [(kind, lang) for kind in KINDS for lang in LANGS]
    return [prompt(*combos[i % len(combos)], training_number(rng)) for i in range(count)]


def held_out_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` (prompt, target) pairs about held-out numbers, the four kinds in turn, drawn by ``seed``."""
    combos = [(kind, lang) for kind in KINDS for lang in LANGS]
    numbers = held_out(count, seed)
    return [(prompt(*combos[i % len(combos)], n), target(*combos[i % len(combos)], n)) for i, n in enumerate(numbers)]
