"""Realistic ways in which a finished bundle can be wrong: the test of the ladder itself."""

from __future__ import annotations

from support.mutations import attention, bias, layers, quantized, settings, weights
from support.mutations.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *weights.MUTATIONS,
    *bias.MUTATIONS,
    *attention.MUTATIONS,
    *layers.MUTATIONS,
    *quantized.MUTATIONS,
    *settings.MUTATIONS,
)


def find_mutation(name: str) -> Mutation:
    """The mutation called ``name``."""
    return next(mutation for mutation in MUTATIONS if mutation.name == name)
