"""What the parser and the builder say, turned into one readable line that names the node and its layer.

Node names are given at export: ``decoder.block.3.block/Attention_57``, ``encoder/stem/Gather_0``,
``decoder/head/Gemm_99``.
"""

from __future__ import annotations

import re
from typing import Any

from t5edge.errors import UserError
from t5edge.runtime.tensorrt.flavor import TensorRT

NODE = re.compile(r"(encoder|decoder)(?:\.block\.(\d+)\.(block|cross_kv)|/(stem|head))/(\w+?)_\d+")
LONGEST = 400
"""Characters of the builder's own words that a message quotes."""


def make_log(tool: TensorRT) -> Any:
    """A fresh ``ILogger`` that keeps warnings and errors in ``.warnings`` and ``.errors``, and prints nothing."""
    trt = tool.trt
    base: Any = trt.ILogger

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.warnings: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

    return Log()


def place_of(text: str, operator: str = "") -> str:
    """The first node that ``text`` names, with its layer: ``node 'x' (Attention, decoder layer 3)``; empty if none.

    ``operator`` is the node's, where it is known better than from the name.
    """
    found = NODE.search(text)
    if found is None:
        return ""
    stack, layer, part, end, named = found.groups()
    where = f"{stack} {end}" if end else f"{stack} layer {layer}"
    if part == "cross_kv":
        where = f"cross-attention keys and values of decoder layer {layer}"
    return f"node '{found.group()}' ({operator or named}, {where})"


def parser_error(tool: TensorRT, file: str, parser: Any) -> UserError:
    """The parser's first error about a node, and how many there are."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return UserError(f"{tool.title} cannot read {file} and does not say why; export the bundle again.")
    first = next((error for error in errors if place_of(error.node_name())), errors[0])
    place = (
        place_of(first.node_name(), first.node_operator()) or f"node '{first.node_name()}' ({first.node_operator()})"
    )
    more = f" ({len(errors) - 1} more errors)" if len(errors) > 1 else ""
    return UserError(
        f"{tool.title} cannot read {file}: {place}: {shorten(first.desc())}{more}. "
        f"A newer {tool.flavor.target} may know it; --target onnxruntime runs the bundle as it is."
    )


def builder_error(tool: TensorRT, file: str, capability: str, errors: list[str]) -> UserError:
    """The builder's first error that names a node of ours, else its first."""
    text = next((error for error in errors if place_of(error)), errors[0] if errors else "no reason given")
    place = place_of(text)
    at = f" at {place}" if place else ""
    return UserError(
        f"{tool.title} cannot build {file} for compute capability {capability}{at}: {shorten(text)}. "
        "Try --no-fuse if it is an attention, another precision otherwise."
    )


def shorten(text: str) -> str:
    """One line, without the address inside the library's sources, at most ``LONGEST`` characters."""
    line = " ".join(text.split())
    line = re.sub(r"\s*In \w+ at /_src/\S+", "", line).rstrip(" .")
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."
