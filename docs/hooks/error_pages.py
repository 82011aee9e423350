"""The index of every error that a user can cause: read from the source, where each is written once."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TypeGuard

ERRORS = {"UserError": 2, "GateError": 1}
"""Exit codes of the command line."""
AREAS = {
    "Command line and options": ("cli.py", "options.py", "errors.py", "commands", "tools"),
    "Opening and running a bundle": ("bundle", "runtime"),
    "Building engines": ("engines",),
    "Exporting": ("pipeline.py", "exporter", "kernels"),
    "Quantizing": ("calibration",),
    "Proving": ("parity",),
}
FAULTS = re.compile("problem|wrong|fail|reason|refus|unsupported|miss|differ|unknown|why|check|found|slow")
"""Names of functions and lists that hold what is wrong."""
UNTOLD = re.compile(
    "join|len|sorted|str|type|map|max|min|list|tuple|dict|set|shown|replace|name|getattr|get|self|field"
)
"""Names in an expression that do not say what it gives."""
INTRODUCTION = """\
# Troubleshooting

Every message that `t5edge` ends with says what is wrong and what to do; this page lists them all, as they stand
in the source. Search for a few words of yours; parts in *italics* differ from case to case.

| exit code | means |
|---|---|
| 0 | done and within tolerance |
| 1 | parity or a quality gate failed; the bundle of an export is kept as `<out>.failed` |
| 2 | an error of the user or of the environment: one line on standard error |
| 70 | a bug of t5edge, with its traceback: please report it |
| 130, 143 | stopped by Ctrl-C or a signal; nothing half-written is left |

`t5edge doctor` says what this machine can build and run, and why not the rest. In Python the same messages are
`t5edge.UserError` (2) and `t5edge.GateError` (1).
"""


@dataclass(frozen=True)
class Message:
    """One place that makes an error; ``text`` is HTML, with ``<var>`` for what differs from case to case."""

    file: str
    line: int
    error: str
    text: str


@dataclass
class _Source:
    """The functions of the whole package by name, and what one function assigns."""

    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)

    def add(self, tree: ast.Module) -> None:
        """The functions and constants of a module."""
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.constants[statement.targets[0].id] = statement.value

    def render(self, node: ast.expr, scope: ast.AST | None, depth: int = 0) -> str:
        """HTML of an expression that makes a text: literal parts as they are, names by what they were given."""
        if isinstance(node, ast.Constant):
            return html.escape(str(node.value), quote=False)
        if isinstance(node, ast.JoinedStr):
            return "".join(self.render(part, scope, depth) for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self.render(node.left, scope, depth) + self.render(node.right, scope, depth)
        if isinstance(node, ast.IfExp):
            return _alternatives(self.render(part, scope, depth) for part in (node.body, node.orelse))
        for found in self._meanings(node, scope) if depth < 4 else ():
            return _alternatives(self.render(value, within, depth + 1) for value, within in found)
        return f"<var>{_label(node)}</var>"

    def _meanings(self, node: ast.expr, scope: ast.AST | None) -> Iterator[list[tuple[ast.expr, ast.AST | None]]]:
        """Texts that a name was given in its function or module, or that a function returns."""
        if isinstance(node, ast.FormattedValue):
            yield from self._meanings(node.value, scope)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions:
            function = self.functions[node.func.id]
            returned = [step.value for step in ast.walk(function) if isinstance(step, ast.Return) and step.value]
            if returned and all(_is_text(value) for value in returned):
                yield [(value, function) for value in returned]
        elif isinstance(node, ast.Name):
            given = [value for value in _given(scope, node.id) if _is_text(value) or isinstance(value, ast.Call)]
            known = given or [self.constants[node.id]] if given or node.id in self.constants else []
            if known:
                yield [(value, scope) for value in known if not _mentions(value, node.id)] or [(known[0], None)]


def _alternatives(texts: Iterable[str]) -> str:
    """One of them stands in a message; where one is empty, the others may be missing."""
    found = list(dict.fromkeys(texts))
    spoken = [text for text in found if text.strip(" .")]
    marked = "<wbr>|".join(spoken)
    return marked if len(found) == 1 else f"[{marked}]"


def _given(scope: ast.AST | None, name: str) -> Iterator[ast.expr]:
    for step in ast.walk(scope) if scope is not None else ():
        if isinstance(step, ast.Assign | ast.AnnAssign | ast.AugAssign) and step.value is not None:
            targets = step.targets if isinstance(step, ast.Assign) else [step.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                yield step.value


def _mentions(node: ast.expr, name: str) -> bool:
    return any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node))


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _label(node: ast.expr) -> str:
    """A short name for what is filled in."""
    names = [part.attr if isinstance(part, ast.Attribute) else part.id for part in ast.walk(node) if _is_name(part)]
    telling = [name for name in names if len(name) > 2 and not UNTOLD.fullmatch(name)]
    return html.escape(
        (telling or [name for name in names if name == "name"] or ["..."])[0].strip("_").replace("_", " ")
    )


def _is_name(node: ast.AST) -> TypeGuard[ast.Attribute | ast.Name]:
    return isinstance(node, ast.Attribute | ast.Name)


def _paths(root: Path) -> Iterator[Path]:
    return (path for names in AREAS.values() for name in names for path in _under(root / name))


def _under(place: Path) -> list[Path]:
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def messages(root: Path) -> list[Message]:
    """Every call of ``UserError`` and ``GateError``, in the order of ``AREAS``."""
    trees = {path: _parsed(path.read_text(encoding="utf-8")) for path in _paths(root)}
    package = _Source()
    for tree in trees.values():
        package.add(tree)
    found = []
    for path, tree in trees.items():
        calls = list(_errors(tree, None))
        source = _Source(dict(package.functions), dict(package.constants))
        if calls:
            source.add(tree)  # its own functions before others of the same name
        for call, scope in calls:
            text = _text(source, call, scope)
            found.append(Message(path.relative_to(root).as_posix(), call.lineno, _called(call), text))
    return found


def _errors(node: ast.AST, scope: ast.AST | None) -> Iterator[tuple[ast.Call, ast.AST | None]]:
    """Every call that makes an error, with the function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call) and _called(child) in ERRORS:
            yield child, scope
        yield from _errors(child, child if isinstance(child, ast.FunctionDef) else scope)


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _text(source: _Source, call: ast.Call, scope: ast.AST | None) -> str:
    """The message; where it is put together elsewhere, the texts that its function holds."""
    text = source.render(call.args[0], scope) if call.args else ""
    if len(text.split()) >= 3 or scope is None:
        return text
    called = [part.func.id for part in ast.walk(call) if isinstance(part, ast.Call) and isinstance(part.func, ast.Name)]
    makers = [source.functions[name] for name in called if name in source.functions]
    spoken = [*_spoken(call.args[0]), *(node for maker in makers for node in _spoken_in(maker))] or _spoken_in(scope)
    return " / ".join(dict.fromkeys(source.render(node, None) for node in spoken)) or text


def _spoken_in(scope: ast.AST) -> list[ast.expr]:
    """The texts of a function, its docstring left out."""
    body = scope.body[1:] if isinstance(scope, ast.FunctionDef) and ast.get_docstring(scope) else [scope]
    return [node for statement in body for node in _spoken(statement)]


def _has_words(node: ast.AST) -> TypeGuard[ast.expr]:
    words = ast.unparse(node) if isinstance(node, ast.JoinedStr) else getattr(node, "value", None)
    return isinstance(node, ast.JoinedStr | ast.Constant) and isinstance(words, str) and words.count(" ") >= 3


def reasons(root: Path, file: str) -> list[str]:
    """HTML of what a module finds wrong and puts into a message of its own or of another module, in its order."""
    tree = _parsed((root / file).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    values = [value for function in functions for value in _faults(function)]
    return list(dict.fromkeys(_Source().render(text, None) for value in values for text in _spoken(value)))


def _faults(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """What a function that looks for faults gives, and what is put into a name for them."""
    for step in ast.walk(function):
        if isinstance(step, ast.Return | ast.Yield):
            place, values = function.name, [step.value]
        elif isinstance(step, ast.Assign | ast.AugAssign):
            place = ast.unparse(step.targets[0] if isinstance(step, ast.Assign) else step.target)
            values = [step.value]
        elif isinstance(step, ast.Call) and isinstance(step.func, ast.Attribute) and step.func.attr == "append":
            place, values = ast.unparse(step.func.value), [*step.args]
        else:
            continue
        yield from (value for value in values if value is not None and FAULTS.search(place))


def _spoken(node: ast.AST) -> Iterator[ast.expr]:
    """The texts in an expression; calls that make an error are listed themselves."""
    if isinstance(node, ast.Call) and _called(node) in ERRORS:
        return
    if _has_words(node):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _spoken(child)


def troubleshooting_page(root: Path) -> str:
    """Markdown of the index, by area and module."""
    found = {file: list(group) for file, group in groupby(messages(root), key=lambda message: message.file)}
    page = [INTRODUCTION]
    for area, names in AREAS.items():
        page.append(f"\n## {area}\n")
        for path in (path for name in names for path in _under(root / name)):
            file = path.relative_to(root).as_posix()
            inside = [] if file.startswith("kernels/") else reasons(root, file)
            if file not in found and not inside:
                continue
            page.append(f"\n### {_subject(path)}\n\n<small>`{file}`</small>\n")
            page += _listed([each.text for each in found.get(file, ())])
            page += ["\nReasons that stand in messages:\n", *_listed(inside)] if inside else []
    return "\n".join(page)


def _listed(texts: list[str]) -> list[str]:
    return ["<ul>", *(f"<li>{text}</li>" for text in texts), "</ul>"] if texts else []


def _subject(path: Path) -> str:
    """What a module is about: the first sentence of its docstring."""
    text = ast.get_docstring(_parsed(path.read_text(encoding="utf-8"))) or path.stem
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "`").split(". ")[0].rstrip(".")
