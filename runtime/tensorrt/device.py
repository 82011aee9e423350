"""Device memory and one stream: what running an engine needs of CUDA, as a protocol and on polygraphy's wrapper.

Addresses are plain integers, sizes are bytes. Everything is queued on the one stream, in order.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from t5edge.errors import UserError

RELAXED = 2
"""cudaStreamCaptureModeRelaxed: other threads may allocate while the stream is captured."""


class Device(Protocol):
    """Where engines run. The tests have one whose memory is the host's."""

    stream: int

    def allocate(self, size: int) -> int: ...

    def free(self, address: int) -> None: ...

    def upload(self, address: int, array: np.ndarray) -> None:
        """Queue a copy of a contiguous array to the device."""
        ...

    def download(self, array: np.ndarray, address: int) -> None:
        """Queue a copy into a contiguous array; it is complete after ``synchronize``."""
        ...

    def copy(self, target: int, source: int, size: int) -> None: ...

    def clear(self, address: int, size: int) -> None:
        """Queue filling with zero bytes."""
        ...

    def synchronize(self) -> None: ...

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """Record what ``enqueue`` queues; returns how to queue it again, or None when it cannot be recorded."""
        ...


def when_unused(owner: object, action: Callable[..., Any], *arguments: Any) -> None:
    """Call ``action`` once ``owner`` is gone, except at the process's end: the driver may be gone by then."""
    weakref.finalize(owner, action, *arguments).atexit = False


class Buffer:
    """Device memory that is freed with its last reference."""

    def __init__(self, device: Device, size: int) -> None:
        self.size = size
        self.address = device.allocate(max(size, 1))
        when_unused(self, device.free, self.address)


class CudaDevice:
    """The current CUDA device through polygraphy's wrapper of the CUDA runtime."""

    def __init__(self) -> None:
        """Raises ``UserError`` when the CUDA runtime library is missing or the device cannot be used."""
        from polygraphy import cuda
        from polygraphy.exception import PolygraphyException
        from polygraphy.logger import G_LOGGER

        try:
            with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
                self._cuda: Any = cuda.wrapper()
                self.stream = int(cuda.wrapper().create_stream())
        except (OSError, PolygraphyException) as error:
            raise UserError(
                f"the CUDA runtime cannot be used ({' '.join(str(error).split())[:200]}); "
                "pip install nvidia-cuda-runtime, or put libcudart on the library path."
            ) from error
        self._kinds: Any = cuda.MemcpyKind
        when_unused(self, self._cuda.destroy_stream, self.stream)

    def allocate(self, size: int) -> int:
        """Raises ``UserError`` when the GPU's memory is full."""
        from polygraphy.exception import PolygraphyException

        try:
            return int(self._cuda.malloc(size))
        except PolygraphyException as error:
            raise UserError(
                f"the GPU has no {size / 1e6:.0f} MB left; build for a smaller --max-batch or --max-target-length."
            ) from error

    def free(self, address: int) -> None:
        self._cuda.free(address)

    def upload(self, address: int, array: np.ndarray) -> None:
        self._cuda.memcpy(address, array.ctypes.data, array.nbytes, self._kinds.HostToDevice, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        self._cuda.memcpy(array.ctypes.data, address, array.nbytes, self._kinds.DeviceToHost, self.stream)

    def copy(self, target: int, source: int, size: int) -> None:
        self._cuda.memcpy(target, source, size, self._kinds.DeviceToDevice, self.stream)

    def clear(self, address: int, size: int) -> None:
        pointer, stream = ctypes.c_void_p(address), ctypes.c_void_p(self.stream)
        self._cuda.check(self._cuda.handle.cudaMemsetAsync(pointer, 0, ctypes.c_size_t(size), stream))

    def synchronize(self) -> None:
        self._cuda.stream_synchronize(self.stream)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None] | None:
        """A CUDA graph of what ``enqueue`` queues."""
        library, stream = self._cuda.handle, ctypes.c_void_p(self.stream)
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        if library.cudaStreamBeginCapture(stream, RELAXED) != 0:
            return None
        try:
            enqueue()
        finally:
            status = library.cudaStreamEndCapture(stream, ctypes.byref(graph))
        if status != 0 or library.cudaGraphInstantiate(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) != 0:
            return None
        library.cudaGraphDestroy(graph)

        def launch() -> None:
            self._cuda.check(library.cudaGraphLaunch(ready, stream))

        when_unused(launch, library.cudaGraphExecDestroy, ready)
        return launch
