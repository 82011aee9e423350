"""The manifest as JSON Schema, draft 2020-12, from the declarations that read it: for clients in other languages.

    cd tests; python -m support.json_schema     writes ``bundle.schema.json``, which the package ships; a test compares

Further keys are allowed everywhere, as the reader allows them: later versions add some.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from t5edge import bundle
from t5edge.bundle.engine_record import EngineEntry, EngineRecord, EngineRun
from t5edge.bundle.files import write_json
from t5edge.bundle.manifest import FORMAT, FORMAT_VERSION, GRAPHS, TASKS, Manifest
from t5edge.bundle.parity_report import NOT_FINITE, CheckResult, ParityReport
from t5edge.bundle.schema import AtLeast, InFolder, OneOf, plain

Json = dict[str, Any]
SHIPPED = Path(bundle.__file__).with_name("bundle.schema.json")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
INSIDE = r"^(?!/)(?!(.*/)?\.\.(/|$))[^\\:]+$"
"""What ``InFolder`` allows."""
ENTRY = re.compile(r"^ {4}(?! )([\w, ]+): ", re.MULTILINE)
"""Where the text of one attribute, or of several, begins in a docstring's list of them."""


def manifest_schema() -> Json:
    """The schema of ``bundle.json``."""
    schemas = _Schemas()
    root = schemas.of(Manifest)
    definitions = dict(sorted(schemas.definitions.items()))
    return {"$schema": DIALECT, "title": "bundle.json of a t5edge bundle", **root, "$defs": definitions}


class _Schemas:
    """Schemas of types; every dataclass becomes a definition."""

    def __init__(self) -> None:
        self.definitions: Json = {}

    def of(self, kind: Any) -> Json:
        origin, arguments = get_origin(kind), get_args(kind)
        if kind is Any:
            return {}
        if origin is Annotated:
            return self._annotated(*arguments)
        if origin in (Union, UnionType):
            return _any_of([self.of(member) for member in arguments])
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (tuple, Sequence):
            return self._list(arguments)
        if origin is not None and issubclass(origin, Mapping):
            return self._mapping(*arguments)
        if is_dataclass(kind):
            return self._object(kind)
        return {"type": PLAIN[kind]}

    def _annotated(self, kind: Any, *rules: Any) -> Json:
        schema = self.of(kind)
        for rule in rules:
            schema |= RULES[type(rule)](rule)
        return schema

    def _list(self, kinds: Sequence[Any]) -> Json:
        if len(kinds) == 1 or kinds[-1] is Ellipsis:
            return {"type": "array", "items": self.of(kinds[0])}
        items = [self.of(kind) for kind in kinds]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}

    def _mapping(self, key: Any, value: Any) -> Json:
        schema = {"type": "object", "additionalProperties": self.of(value)}
        names = {rule: entry for rule, entry in self.of(key).items() if rule != "type"}
        return {**schema, "propertyNames": names} if names else schema

    def _object(self, kind: Any) -> Json:
        name = kind.__name__
        if name not in self.definitions:
            self.definitions[name] = {}  # its place, should it be met again below itself
            hints, texts = get_type_hints(kind, include_extras=True), _attribute_texts(kind)
            entries = {entry.name: self.of(hints[entry.name]) for entry in fields(kind) if entry.repr}
            for entry in fields(kind):
                if entry.name in entries:
                    entries[entry.name] |= {**_text(texts.get(entry.name)), **_default(entry)}
            needed = [name for name, entry in entries.items() if "default" not in entry]
            schema = {"description": _first_line(kind), "type": "object", "properties": entries, "required": needed}
            self.definitions[name] = SHAPES.get(kind, lambda given, _: given)(schema, self)
        return {"$ref": f"#/$defs/{name}"}


RULES: Mapping[type, Callable[[Any], Json]] = {
    AtLeast: lambda rule: {"minimum": rule.least},
    OneOf: lambda rule: {"enum": list(rule.choices)},
    InFolder: lambda rule: {"pattern": INSIDE},
}


def _any_of(members: Sequence[Json]) -> Json:
    """One of them; what is nothing but a type shares a list of types."""
    types = [member["type"] for member in members if set(member) == {"type"}]
    others = [member for member in members if set(member) != {"type"}]
    if others:
        return {"anyOf": [*others, *({"type": name} for name in types)]}
    return {"type": types}


def _manifest(schema: Json, schemas: _Schemas) -> Json:
    """Format and version stand first, further keys beside the others; the task decides which graphs there are."""
    entries = {name: entry for name, entry in schema["properties"].items() if name != "other"}
    own = {"format": {"const": FORMAT}, "format_version": {"type": "integer", "minimum": 1, "maximum": FORMAT_VERSION}}
    once = schemas.of(Mapping[str, str])
    entries["session"]["anyOf"].append({**once, "description": "once for all graphs, in bundles of early versions"})
    alone = {"properties": {"task": {"const": TASKS[1]}}, "required": ["task"]}
    return {
        **schema,
        "properties": {**own, **entries},
        "required": [*own, *schema["required"]],
        "if": alone,
        "then": _graphs(GRAPHS[:1], {"const": 0}),
        "else": _graphs(GRAPHS, {"minimum": 1}),
    }


def _graphs(names: Sequence[str], layers: Json) -> Json:
    ports, architecture = {"required": list(names)}, {"properties": {"decoder_layers": layers}}
    return {"properties": {"ports": ports, "architecture": architecture}}


def _engine_entry(schema: Json, schemas: _Schemas) -> Json:
    """The records stand beside ``run``."""
    entries = {"run": schemas.of(str | EngineRun)}
    return {**schema, "properties": entries, "required": [], "additionalProperties": schemas.of(EngineRecord)}


def _check_result(schema: Json, schemas: _Schemas) -> Json:
    """NaN and infinity are written by their names."""
    number = {"anyOf": [{"type": ["number", "null"]}, {"enum": list(NOT_FINITE)}]}
    return {**schema, "properties": {**schema["properties"], "value": number, "limit": number}}


def _parity_report(schema: Json, schemas: _Schemas) -> Json:
    """Facts stand beside the results, which are called rungs."""
    missing = {"type": "array", "items": schemas.of(Mapping[str, str])}
    rungs = schemas.of(Sequence[CheckResult])
    entries = {"passed": {"type": "boolean"}, "not_run": missing, "rungs": rungs}
    return {**schema, "properties": entries, "required": ["rungs"]}


SHAPES: Mapping[type, Callable[[Json, _Schemas], Json]] = {
    Manifest: _manifest,
    EngineEntry: _engine_entry,
    CheckResult: _check_result,
    ParityReport: _parity_report,
}
"""Classes whose JSON has another shape than their fields: each has an ``unpack`` too."""


def _text(text: str | None) -> Json:
    return {} if text is None else {"description": text}


def _default(entry: Field[Any]) -> Json:
    """What it means that an entry is not there."""
    if entry.default_factory is not MISSING:
        return {"default": plain(entry.default_factory())}
    return {} if entry.default is MISSING else {"default": plain(entry.default)}


def _first_line(kind: type) -> str:
    return _as_json_says((inspect.getdoc(kind) or "").partition("\n")[0])


def _attribute_texts(kind: type) -> dict[str, str]:
    """What a class's docstring says of each attribute, in one line."""
    listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    _, *parts = ENTRY.split(listed)
    texts = zip(parts[::2], parts[1::2], strict=True)
    return {name.strip(): _as_json_says(text) for names, text in texts for name in names.split(",")}


def _as_json_says(text: str) -> str:
    return re.sub(r"\bNone\b", "null", " ".join(text.replace("``", "`").split()))


if __name__ == "__main__":
    write_json(SHIPPED, manifest_schema())
