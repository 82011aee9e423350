"""Parsed JSON as frozen dataclasses, by their annotations; and back. Every problem is found, none raises midway.

A field without a default must be there. Further keys of an object are ignored. A class whose JSON has another shape
than its fields says so with ``unpack``, a static method: the object -> its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

DEEPEST = 64
"""Levels of nesting that a document may have; ours have about ten."""
SHOWN = 40
"""Characters of a wrong value that a message repeats."""
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class AtLeast:
    """Smallest number allowed, for ``Annotated``."""

    least: float

    def problem(self, value: Any) -> str | None:
        return None if value >= self.least else f"at least {self.least:g}"


@dataclass(frozen=True)
class OneOf:
    """Texts allowed, for ``Annotated``."""

    choices: tuple[str, ...]

    def problem(self, value: Any) -> str | None:
        return None if value in self.choices else f"one of {', '.join(self.choices)}"


@dataclass(frozen=True)
class InFolder:
    """A relative path with forward slashes that does not leave its folder, for ``Annotated``."""

    def problem(self, value: Any) -> str | None:
        path = PurePosixPath(value)
        inside = value and not path.is_absolute() and ".." not in path.parts and "\\" not in value and ":" not in value
        return None if inside else "a path inside the bundle"


Size = Annotated[int, AtLeast(1)]
Count = Annotated[int, AtLeast(0)]
FileName = Annotated[str, InFolder()]


def too_deep(data: Any, levels: int = DEEPEST) -> bool:
    """Whether ``data`` is nested deeper than ``levels``."""
    level = [data]
    for _ in range(levels):
        inner = [value for value in level if isinstance(value, (dict, list))]
        level = [part for value in inner for part in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return False
    return True


def read_as(kind: Any, data: Any, place: str, problems: list[str]) -> Any:
    """``data`` as ``kind``; what does not fit is added to ``problems``, with its ``place`` (dotted keys)."""
    origin = get_origin(kind)
    if kind is Any:
        return data
    if origin is Annotated:
        return _annotated(kind, data, place, problems)
    if origin in (Union, UnionType):
        return _union(get_args(kind), data, place, problems)
    if origin is Literal:
        return _wrong(place, data, f"one of {', '.join(get_args(kind))}", problems, data in get_args(kind))
    if origin is tuple:
        return _tuple(get_args(kind), data, place, problems)
    if origin is Sequence:
        return _tuple((*get_args(kind), ...), data, place, problems)
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(get_args(kind), data, place, problems)
    if is_dataclass(kind):
        return _object(kind, data, place, problems)
    fits = isinstance(data, (int, float) if kind is float else kind) and (kind is bool or not isinstance(data, bool))
    return _wrong(place, data, WORDS[kind], problems, fits)


def _wrong(place: str, data: Any, expected: str, problems: list[str], fits: bool = False) -> Any:
    if not fits:
        text = "null" if data is None else repr(data)
        shown = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        problems.append(f"{place} is {shown}, expected {expected}")
    return data


def _annotated(kind: Any, data: Any, place: str, problems: list[str]) -> Any:
    plain, *rules = get_args(kind)
    before = len(problems)
    value = read_as(plain, data, place, problems)
    if len(problems) == before:
        for expected in filter(None, (rule.problem(value) for rule in rules)):
            _wrong(place, data, expected, problems)
    return value


def _union(kinds: Sequence[Any], data: Any, place: str, problems: list[str]) -> Any:
    """The member that ``data`` fits; where it fits none, the problems of the one it looks like."""
    if data is None and type(None) in kinds:
        return None
    for kind in kinds:
        tried: list[str] = []
        value = read_as(kind, data, place, tried)
        if not tried:
            return value
    objects = [kind for kind in kinds if is_dataclass(kind) or get_origin(kind) not in (None, Annotated)]
    if objects and isinstance(data, (dict, list)):
        return read_as(objects[0], data, place, problems)
    return _wrong(place, data, " or ".join(_words(kind) for kind in kinds), problems)


def _words(kind: Any) -> str:
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return WORDS.get(plain, "a list" if get_origin(plain) is tuple else "an object")


def _tuple(kinds: Sequence[Any], data: Any, place: str, problems: list[str]) -> Any:
    if not isinstance(data, (list, tuple)):
        return _wrong(place, data, "a list", problems)
    if kinds[-1] is Ellipsis:
        kinds = [kinds[0]] * len(data)
    if len(kinds) != len(data):
        return _wrong(place, data, f"a list of {len(kinds)}", problems)
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(read_as(kind, value, f"{place}[{index}]", problems) for index, (kind, value) in pairs)


def _mapping(kinds: Sequence[Any], data: Any, place: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        return _wrong(place, data, "an object", problems)
    for key in data:
        read_as(kinds[0], key, f"the name {place}.{key}", problems)
    return {key: read_as(kinds[1], value, f"{place}.{key}", problems) for key, value in data.items()}


def _object(kind: Any, data: Any, place: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        return _wrong(place, data, "an object", problems)
    given = kind.unpack(data) if hasattr(kind, "unpack") else data
    hints, before, values = _hints(kind), len(problems), {}
    for entry in fields(kind):
        where = f"{place}.{entry.name}".lstrip(".")
        if entry.name in given:
            values[entry.name] = read_as(hints[entry.name], given[entry.name], where, problems)
        elif entry.default is MISSING and entry.default_factory is MISSING:
            problems.append(f"{where} is missing")
    return kind(**values) if len(problems) == before else None


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def plain(value: Any) -> Any:
    """``value`` as JSON has it: dataclasses as objects, by their ``to_dict`` where they have one; tuples as lists."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
