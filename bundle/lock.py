"""An operating system's lock on a file: released when its holder ends, however it ends.

It holds between processes and containers that share a volume of one machine. Between machines that share NFS or SMB it
holds where the server and the mount have locks (NFS: version 4, or version 3 without ``nolock``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of the file ``path``, which exists only meanwhile. Gives False where the file system has no locks.

    Raises:
        BlockingIOError: another holds it.
        OSError: the file cannot be made.
    """
    file = path.open("ab")
    try:
        held = _lock(file.fileno())
        if sys.platform != "win32" and not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError  # its last holder has removed it since it was opened
    except (BlockingIOError, PermissionError, FileNotFoundError) as error:
        file.close()
        raise BlockingIOError(f"'{path}' is locked") from error
    try:
        yield held
    finally:
        with suppress(OSError):  # Windows refuses while it is open; elsewhere it must go before another can lock it
            path.unlink()
        file.close()
        if sys.platform == "win32":
            with suppress(OSError):  # refused while another has it open
                path.unlink()


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP: some network and user-space file systems
        return False
    return True
