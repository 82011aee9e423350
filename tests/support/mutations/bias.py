"""Position bias tables computed or placed wrongly, and the masks that are part of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from support.mutations.draft import Draft
from support.mutations.mutation import Mutation, require
from t5edge.exporter.graph.position_buckets import bucket_table

Change = Callable[[np.ndarray], None]
CAUSAL = 129
"""Decoder tables hold distances -max_distance to 0 and one column for every later key."""


def change(stack: str, how: Change, draft: Draft) -> None:
    """Every table of a stack [heads, distances]; of the decoder's the columns that are not masked."""
    for table in draft.tables(stack):
        how(table[:, :-1] if stack == "decoder" else table)


def roll(table: np.ndarray) -> None:
    table[:, 1:] = table[:, :-1].copy()


def mirror(table: np.ndarray) -> None:
    table[:] = table[:, ::-1].copy()


def swap_heads(table: np.ndarray) -> None:
    table[[0, -1]] = table[[-1, 0]]


def zero(table: np.ndarray) -> None:
    table[:] = 0


def shrink(factor: float, table: np.ndarray) -> None:
    table[:] = table * table.dtype.type(factor)


def saturated(table: np.ndarray) -> None:
    """Distances beyond the last bucket get no bias."""
    table[:, 0] = 0


def nan_beyond(distance: int, table: np.ndarray) -> None:
    """As a table that ends early: what is read behind it is no number."""
    table[:, : table.shape[1] - distance if table.shape[1] == CAUSAL else table.shape[1] // 2 - distance] = np.nan


def recomputed(stack: str, buckets: Callable[[int, int], tuple[int, ...]], draft: Draft) -> None:
    """Tables from other buckets; ``buckets`` gives one for each column, from the number and the largest distance."""
    a = draft.architecture
    layers = a.encoder_layers if stack == "encoder" else a.decoder_layers
    names = [f"{stack}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight" for layer in range(layers)]
    for table, name in zip(draft.tables(stack), names, strict=False):
        raw = draft.checkpoint.read(name).float().numpy()
        chosen = np.array(buckets(a.num_buckets, a.max_distance))
        table[:, : len(chosen)] = raw[chosen].T


def bidirectional_in_decoder(count: int, distance: int) -> tuple[int, ...]:
    return bucket_table(count, distance, True)[: distance + 1]


def causal_in_encoder(count: int, distance: int) -> tuple[int, ...]:
    past = bucket_table(count, distance, False)
    return (*past, *past[-2::-1])


def half_distance(bidirectional: bool, count: int, distance: int) -> tuple[int, ...]:
    """Buckets of half the largest distance, saturated beyond."""
    half = distance // 2
    table = bucket_table(count, half, bidirectional)
    return (*[table[0]] * half, *table, *([table[-1]] * half if bidirectional else []))


def fewer_buckets(count: int, distance: int) -> tuple[int, ...]:
    return bucket_table(count // 2, distance, True)


def layers_swapped(draft: Draft) -> None:
    require(draft.architecture.per_layer_bias)
    first, second, *_ = draft.tables("decoder")
    first[:], second[:] = second.copy(), first.copy()


def first_for_all(draft: Draft) -> None:
    require(draft.architecture.per_layer_bias)
    first, *others = draft.tables("encoder")
    for table in others:
        table[:] = first


def stacks_swapped(draft: Draft) -> None:
    """The encoder's past half and the decoder's change places."""
    for left, right in zip(draft.tables("encoder"), draft.tables("decoder"), strict=False):
        left[:, :CAUSAL], right[:, :CAUSAL] = right[:, :CAUSAL].copy(), left[:, :CAUSAL].copy()


def mask_column(how: Callable[[np.ndarray], np.ndarray], draft: Draft) -> None:
    """What stands for every later key: ``how`` makes it from the columns before, [heads, distances] -> [heads]."""
    for table in draft.tables("decoder"):
        table[:, -1] = how(table[:, :-1].astype(np.float32))


def leak(table: np.ndarray) -> np.ndarray:
    """Later keys keep a fifth of the weight that the token itself has."""
    return table[:, -1] + np.float32(np.log(0.2))


def strict(draft: Draft) -> None:
    """A token does not see itself."""
    for table in draft.tables("decoder"):
        table[:, -2] = table[:, -1]


def _bias(name: str, apply: Callable[[Draft], None]) -> Mutation:
    return Mutation(name, "bias tables", "weights", apply)


def _mask(name: str, apply: Callable[[Draft], None], expected: str = "graphs") -> Mutation:
    return Mutation(name, "masks", expected, apply)


MUTATIONS = (
    _bias("encoder bias off by one position", partial(change, "encoder", roll)),
    _bias("decoder bias off by one position", partial(change, "decoder", roll)),
    _bias("encoder bias mirrored", partial(change, "encoder", mirror)),
    _bias("encoder bias, first and last head swapped", partial(change, "encoder", swap_heads)),
    _bias("encoder bias dropped", partial(change, "encoder", zero)),
    _bias(
        "decoder bias divided by sqrt(d_kv)", lambda d: change("decoder", partial(shrink, d.architecture.d_kv**-0.5), d)
    ),
    _bias("decoder bias 5 % larger", partial(change, "decoder", partial(shrink, 1.05))),
    _bias("no bias beyond the last bucket, encoder", partial(change, "encoder", saturated)),
    _bias("no bias beyond the last bucket, decoder", partial(change, "decoder", saturated)),
    _bias("NaN in the encoder's bias beyond 100 positions", partial(change, "encoder", partial(nan_beyond, 100))),
    _bias("NaN in the decoder's bias beyond 100 positions", partial(change, "decoder", partial(nan_beyond, 100))),
    _bias("decoder with bidirectional buckets", partial(recomputed, "decoder", bidirectional_in_decoder)),
    _bias("encoder with causal buckets", partial(recomputed, "encoder", causal_in_encoder)),
    _bias("encoder max_distance halved", partial(recomputed, "encoder", partial(half_distance, True))),
    _bias("decoder max_distance halved", partial(recomputed, "decoder", partial(half_distance, False))),
    _bias("encoder with half the buckets", partial(recomputed, "encoder", fewer_buckets)),
    _bias("decoder layers 0 and 1 have each other's bias", layers_swapped),
    _bias("every encoder layer has the first one's bias", first_for_all),
    _bias("encoder and decoder bias swapped", stacks_swapped),
    _mask("causal mask lost", partial(mask_column, lambda table: table[:, -1])),
    _mask("causal mask leaks 20 %", partial(mask_column, leak)),
    _mask("causal mask hides the token itself", strict, "weights"),
)
