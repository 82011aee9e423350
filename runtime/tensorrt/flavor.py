"""TensorRT and TensorRT-RTX as rows: one code path, another module name. What differs between them stands here."""

from __future__ import annotations

import gc
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from packaging.version import Version

from t5edge.errors import EXTRAS, UserError, install


@dataclass(frozen=True)
class Flavor:
    """One row.

    Attributes:
        target: the target's name.
        module: the Python module with the builder and the runtime.
        compute_capabilities: what its builder targets without that GPU in the machine; empty when it builds only for
            the GPU in the machine.
        oldest: the first version with what its builder and runtime need of it; it reads portable graphs.
        oldest_attention: the first version whose ONNX parser has ``Attention``, by its release notes; (0, 0) where they
            do not say: the parser then names the operator it lacks.
        jit: kernels are finished on the device at run time, so it has a runtime cache instead of a timing cache.
    """

    target: str
    module: str
    compute_capabilities: tuple[str, ...]
    oldest: tuple[int, int]
    oldest_attention: tuple[int, int]
    jit: bool


FLAVORS = {
    row.target: row
    for row in (
        Flavor("tensorrt", "tensorrt", (), (10, 3), (10, 14), jit=False),
        Flavor("tensorrt-rtx", "tensorrt_rtx", ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"), (0, 0), (0, 0), jit=True),
    )
}


def flavor_of(target: str) -> Flavor:
    """The row of an engine target.

    Raises:
        UserError: the target has no engines.
    """
    flavor = FLAVORS.get(target)
    if flavor is None:
        raise UserError(
            f"target '{target}' has no engines to build; choose one of {', '.join(FLAVORS)} "
            "(onnxruntime runs the ONNX files as they are)."
        )
    return flavor


def spelled(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class TensorRT:
    """A loaded module: ``trt`` is ``tensorrt`` or ``tensorrt_rtx``."""

    flavor: Flavor
    trt: Any

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """For messages: target and version."""
        return f"{self.flavor.target} {self.version}"

    @property
    def has_attention(self) -> bool:
        """Whether it reads graphs with fused operators; else portable ones only."""
        return self.at_least(self.flavor.oldest_attention)

    def at_least(self, version: tuple[int, int]) -> bool:
        return Version(self.version).release >= version


def load_tensorrt(target: str) -> TensorRT:
    """Import the target's module.

    Raises:
        UserError: it is not installed, or it is too old.
    """
    flavor = flavor_of(target)
    if importlib.util.find_spec(flavor.module) is None:
        raise UserError(f"{flavor.module} is not installed, target {target} needs it; {install(EXTRAS[flavor.module])}")
    try:
        loaded = TensorRT(flavor, importlib.import_module(flavor.module))
    except (ImportError, OSError) as error:
        raise UserError(
            f"{flavor.module} is installed and does not load ({error}); {install(EXTRAS[flavor.module])}"
        ) from error
    if not loaded.at_least(flavor.oldest):
        raise UserError(
            f"{loaded.title} is too old: {target} {spelled(flavor.oldest)} or newer is needed. "
            "Upgrade it, or run the bundle with --target onnxruntime."
        )
    return loaded


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic garbage collection while TensorRT calls back into Python.

    It holds a lock while it logs. A collection that starts in the callback and finds an old builder in a cycle (an
    exception's frames will do) destroys it there, which waits for that lock for ever.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
