"""Pages of the command line, made from the parser, which is made from the option dataclasses."""

from __future__ import annotations

import argparse
import html
from collections.abc import Iterator

from t5edge.commands.arguments import build_parser


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the command line has no commands")


def command_page(name: str, parser: argparse.ArgumentParser) -> str:
    """Markdown of one command: what it is for, and a row for each argument."""
    said = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    purpose = parser.description or ""
    positional = [action for action in said if not action.option_strings]
    page = [f"# t5edge {name}", "", f"{purpose[:1].upper()}{purpose[1:]}.", ""]
    arguments = " ".join(["t5edge", name, *(_argument(action) for action in positional)])
    page += ["```text", f"{arguments} [options]", "```", ""]
    page += _table("argument", positional) if positional else []
    for group in parser._action_groups:
        options = [action for action in said if action.option_strings and action in group._group_actions]
        title = "option" if group.title == "options" else f"option: {group.title}"
        page += _table(title, options) if options else []
    return "\n".join(page)


def _table(title: str, actions: list[argparse.Action]) -> list[str]:
    return [f"| {title} | |", "|---|---|", *(_row(action) for action in actions), ""]


def overview_page() -> str:
    """Markdown of the list of all commands."""
    rows = [f"| [`t5edge {name}`]({name}.md) | {parser.description} |" for name, parser in commands().items()]
    return "\n".join(
        [
            "# Command line",
            "",
            "Generated from the program's own declarations; `t5edge COMMAND --help` prints the same.",
            "Exit codes: see [Troubleshooting](../../troubleshooting.md).",
            "",
            "| command | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _argument(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    return f"[{name} ...]" if action.nargs == "*" else f"[{name}]" if action.nargs == "?" else name


def _row(action: argparse.Action) -> str:
    needed = "; required" if action.option_strings and action.required else ""
    return (
        f"| {'<br>'.join(_spellings(action))} | {_cell((action.help or '') % vars(action))}{_choices(action)}{needed} |"
    )


def _spellings(action: argparse.Action) -> Iterator[str]:
    if not action.option_strings:
        yield _code(_argument(action))
    value = "" if action.nargs == 0 else f" {action.metavar or '|'.join(map(str, action.choices or ())) or 'VALUE'}"
    more = " ..." if action.nargs in ("+", "*") else ""
    for option in action.option_strings:
        yield _code(option + value + more)


def _choices(action: argparse.Action) -> str:
    listed = ", ".join(_code(str(choice)) for choice in action.choices or ())
    return f"; one of {listed}" if listed and action.metavar else ""


def _code(text: str) -> str:
    return f"<code>{_cell(text)}</code>"


def _cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "&#124;").replace("*", "&#42;").replace("_", "&#95;")
