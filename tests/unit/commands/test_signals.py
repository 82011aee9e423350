"""In a process of its own: handlers are the process's."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from t5edge.commands.signals import Endable, Stopped, end_on_signals
from t5edge.progress import Silent

class Deaf:
    def __del__(self):
        os.kill(os.getpid(), {number})
        for _ in range(1000):
            pass

end_on_signals()
progress = Endable(Silent())
with progress.stage("work") as stage:
    stage.advance()
    Deaf()
    stage.note("nothing was raised here")
    print("went on")
    try:
        {step}
    except Stopped as stopped:
        print("stopped by", stopped.number)
    progress.message("cleaning up")
"""


@pytest.mark.parametrize("step", ["stage.advance()", "progress.stage('next').__enter__()"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_that_was_lost_is_raised_at_the_next_step(number: signal.Signals, step: str) -> None:
    script = SCRIPT.format(number=int(number), step=step)
    found = subprocess.run(
        [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler)\n" + script],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split("\n")[:2] == ["went on", f"stopped by {int(number)}"]
    assert "Exception ignored in" in found.stderr


def test_what_is_ignored_stays_ignored() -> None:
    script = "import signal\nsignal.signal(15, signal.SIG_IGN)\n" + SCRIPT.format(number=15, step="stage.advance()")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "went on\n"
