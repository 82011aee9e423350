"""The end of a sweep as its exports notice it: the pipe on their standard input closes.

It closes on every system and however the sweep ended, killed or crashed included.
"""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time

PARENT_PIPE = "T5EDGE_PARENT_PIPE"
"""Set in the environment of a sweep's exports."""
GRACE_SECONDS = 30.0
"""How long an export may take to remove its temporary folder before it is killed."""


def end_with_parent() -> None:
    """Where ``T5EDGE_PARENT_PIPE`` is set, interrupt this process when its standard input closes."""
    if os.environ.pop(PARENT_PIPE, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit it ignored,
        if hasattr(signal, "pthread_sigmask"):  # and children of Ray's workers blocked
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        threading.Thread(target=_interrupt_at_end, daemon=True).start()


def _interrupt_at_end() -> None:
    while os.read(0, 1):
        pass
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # also wakes a call that waits
    else:
        _thread.interrupt_main()
    time.sleep(GRACE_SECONDS)
    os._exit(130)
