"""``--config FILE``: the options of a command as TOML. Keys are the flags' names, with dashes or underscores.

    variant = "t5-demo"
    precision = ["int8", "fp16"]
    max-batch = 4

What the command line gives comes before what the file says; a list replaces the file's.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from t5edge.bundle.files import regular
from t5edge.errors import UserError, printable

NOT_IN_FILES = ("config",)
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def read_config(path: str, options: type[Any]) -> dict[str, Any]:
    """The values in ``path`` by the names of ``options``' fields; those of fields that are tuples are lists.

    Raises:
        UserError: it cannot be read, is no TOML, names an option that there is not, or gives one a value of another
            type; everything that is wrong is named.
    """
    data = _parsed(path)
    known = {entry.name: entry for entry in fields(options) if entry.name not in NOT_IN_FILES}
    hints, found, problems = typing.get_type_hints(options), dict[str, Any](), []
    for key, value in data.items():
        name = key.replace("-", "_")
        if name in known:
            found[name], problem = _checked(value, hints[name], known[name].metadata.get("choices"))
        else:
            near = difflib.get_close_matches(name, known, 1)
            problem = f"no option; did you mean '{_spelled(near[0])}'?" if near else "no option"
        problems += [f"'{key}' is {problem}"] if problem else []
    if problems:
        raise UserError(printable(f"'{path}': {'; '.join(problems)}"))
    return found


def scalar_type(hint: Any) -> Any:
    """The type of one value: ``int`` for ``int | None`` and ``tuple[int, ...]``."""
    arguments = [part for part in typing.get_args(hint) if part not in (types.NoneType, Ellipsis)]
    return arguments[0] if arguments else hint


def _checked(value: Any, hint: Any, choices: Any) -> tuple[Any, str]:
    """``value`` as an option takes it, and what is wrong with it."""
    several, kind = typing.get_origin(hint) is tuple, scalar_type(hint)
    values = value if several and isinstance(value, list) else [value]
    accepted = (int, float) if kind is float else kind
    if not all(isinstance(one, accepted) and (kind is bool or not isinstance(one, bool)) for one in values):
        return None, f"{value!r}; {WORDS[kind]} is needed" + (", or a list" if several else "")
    if choices and not set(values) <= set(choices):
        return None, f"{value!r}; choose one of {', '.join(map(str, choices))}"
    return (values if several else float(value) if kind is float else value), ""


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _parsed(path: str) -> Mapping[str, Any]:
    """Raises: UserError where it cannot be read, or is no TOML."""
    toml = _toml()
    try:
        data: Mapping[str, Any] = toml.loads(regular(Path(path)).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}; --config takes a TOML file.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is no TOML ({error}); --config takes lines such as precision = \"int8\".") from error
    return data


def _toml() -> Any:
    """The standard library's reader, or the package that it came from.

    Raises:
        UserError: this Python has neither.
    """
    name = next((name for name in ("tomllib", "tomli") if importlib.util.find_spec(name)), None)
    if name is None:
        raise UserError("--config needs Python 3.11 or later, or the package tomli: pip install tomli")
    return importlib.import_module(name)
