"""The decoder's cache of keys and values, and what the installed transformers calls the argument that takes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def cache_keyword(forward: Callable[..., Any]) -> str:
    """The keyword by which a T5 ``forward`` takes its cache: ``cache`` since transformers 5.24, before that another."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def new_cache(own: Any = None, cross: Any = None) -> Any:
    """A cache that grows with the decoder's depth, whatever the encoder's; empty, or with keys and values by layer."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(own), DynamicCache(cross))
