from __future__ import annotations

from t5edge.engines.monitor import make_monitor
from t5edge.runtime.tensorrt.flavor import TensorRT


class Stage:
    def __init__(self) -> None:
        self.steps, self.notes = 0, list[str]()

    def advance(self, amount: int = 1) -> None:
        self.steps += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


class InterruptedStage(Stage):
    def advance(self, amount: int = 1) -> None:
        raise KeyboardInterrupt


def test_phases_below_the_outermost_are_noted_and_steps_counted(rtx: TensorRT) -> None:
    stage = Stage()
    monitor = make_monitor(rtx, stage)
    monitor.phase_start("Building engine", None, 2)
    monitor.phase_start("Optimizing graph", "Building engine", 1)
    monitor.phase_start("Detail", "Optimizing graph", 1)
    assert monitor.step_complete("Detail", 0)
    assert monitor.step_complete("Optimizing graph", 0)
    monitor.phase_finish("Building engine")
    assert (stage.steps, stage.notes) == (2, ["optimizing graph"])


def test_an_interrupt_cancels_the_build_and_is_kept(rtx: TensorRT) -> None:
    monitor = make_monitor(rtx, InterruptedStage())
    assert monitor.step_complete("Building engine", 0) is False
    assert isinstance(monitor.interrupted, KeyboardInterrupt)
