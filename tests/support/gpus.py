"""Machines with and without GPUs, as tests pretend them."""

from __future__ import annotations

from collections.abc import Callable

from t5edge.progress import Silent
from t5edge.runtime.gpu import GpuReport

NO_GPU = GpuReport((), "no GPU: none in this test")


SetGpus = Callable[..., None]


FINDERS = (
    "t5edge.engines.build.find_gpus",
    "t5edge.engines.proof.find_gpus",
    "t5edge.runtime.gpu.find_gpus",
    "t5edge.engines.doctor.find_gpus",
)


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)
