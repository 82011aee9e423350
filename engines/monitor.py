"""The builder's phases as stages of our progress, and Ctrl-C as a cancelled build."""

from __future__ import annotations

from typing import Any

from t5edge.progress import Stage
from t5edge.runtime.tensorrt.flavor import TensorRT


def make_monitor(tool: TensorRT, stage: Stage) -> Any:
    """An ``IProgressMonitor`` that notes the phase on ``stage`` and counts its steps.

    A callback must not raise into the builder: an interrupt is kept in ``.interrupted`` and cancels the build.
    """
    base: Any = tool.trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.outermost: set[str] = set()
            self.interrupted: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.outermost.add(phase_name)
            elif parent_phase in self.outermost:
                self._tell(lambda: stage.note(phase_name.lower()))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(lambda: stage.advance())
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            self.outermost.discard(phase_name)

        def _tell(self, action: Any) -> None:
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - kept, and raised again after the build
                self.interrupted = error

    return Monitor()
