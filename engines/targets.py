"""Which engines an export builds: those asked for, else those that build and run here; refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from t5edge.engines.build import check_buildable
from t5edge.engines.doctor import engine_targets
from t5edge.errors import UserError
from t5edge.runtime.backend import BACKENDS
from t5edge.runtime.tensorrt.flavor import TensorRT, load_tensorrt


def choose_targets(
    wanted: Sequence[str], compute_capabilities: Sequence[str], *dtypes: str, portable: bool = False
) -> tuple[str, ...]:
    """The engine targets to build for graphs of these dtypes. ``wanted``: targets by name, none for what runs here.

    Raises:
        UserError: an unknown target, or one that cannot be built here.
    """
    known = [backend.name for backend in BACKENDS.values() if backend.is_engine or not backend.needs_gpu]
    unknown = [target for target in wanted if target not in known]
    if unknown:
        raise UserError(f"target '{unknown[0]}' is unknown; choose among {', '.join(known)}.")
    here = (target for target in engine_targets() if portable or load_tensorrt(target).has_attention)
    chosen = dict.fromkeys(wanted or here)
    engines = tuple(target for target in chosen if BACKENDS[target].is_engine)
    for target in engines:
        check_buildable(target, compute_capabilities, *dtypes, portable=portable)
    return engines


def portable_only(wanted: Sequence[str]) -> TensorRT | None:
    """The first engine target, of ``wanted`` or of what runs here, whose package reads portable graphs only.

    What is unknown or not installed is left to ``choose_targets``, which refuses it.
    """
    for target in wanted or engine_targets():
        with suppress(UserError):
            tool = load_tensorrt(target)
            if not tool.has_attention:
                return tool
    return None
