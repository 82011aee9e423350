"""matplotlib, where it is installed: for images in files, never on a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t5edge.errors import UserError


def load_pyplot() -> Any:
    """``matplotlib.pyplot`` without a display.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 't5edge[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    """Write ``figure``, in the format of the file's ending, and close it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be written ({error}); pass a path that ends in .png.") from error
    finally:
        load_pyplot().close(figure)
