"""Where this user's caches live: beside no bundle, since a bundle may be read-only."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder of timing caches, runtime caches and marks of checked files; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(base) if base else Path.home() / ".cache") / "t5edge"
