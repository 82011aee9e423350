"""Weights that engines read as inputs: on the device once, from the bundle's one weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from t5edge.errors import UserError
from t5edge.runtime.tensorrt.device import Buffer, Device

PREFIX = "weight:"


WEIGHTS_FILE = "weights.safetensors"


class DeviceWeights:
    """Weights of the file ``path`` on a device, each uploaded once, when an engine first wants it."""

    def __init__(self, device: Device, path: Path) -> None:
        self._device, self._path = device, path
        self._buffers: dict[str, Buffer] = {}

    def inputs(self, places: Mapping[str, tuple[int, int]]) -> dict[str, Buffer]:
        """The buffers of some weights by the names of the engine's inputs.

        Raises:
            UserError: the file is missing or too short.
        """
        missing = {name: place for name, place in places.items() if name not in self._buffers}
        for name, (offset, size) in missing.items():
            self._buffers[name] = Buffer(self._device, size)
            self._device.upload(self._buffers[name].address, self._read(offset, size))
            self._device.synchronize()
        return {PREFIX + name: self._buffers[name] for name in places}

    def _read(self, offset: int, size: int) -> np.ndarray:
        """Bytes of the file, uint8 [size]."""
        try:
            found = np.fromfile(self._path, np.uint8, size, offset=offset)
        except OSError as error:
            raise UserError(f"'{self._path}' cannot be read ({error.strerror}); export the bundle again.") from error
        if found.size != size:
            raise UserError(f"'{self._path}' is shorter than its engines expect; export the bundle again.")
        return found
