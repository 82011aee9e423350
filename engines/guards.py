"""Refuse what cannot work before it is tried: a combination the builder cannot build, an engine that does not fit.

Every refusal says why, and names the nearest thing that works.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from t5edge.bundle.files import sha256_of
from t5edge.bundle.manifest import PORTABLE_OPSET, Manifest
from t5edge.errors import UserError
from t5edge.runtime.gpu import GpuReport
from t5edge.runtime.tensorrt.flavor import Flavor, TensorRT, spelled


@dataclass(frozen=True)
class Minimum:
    """A dtype and the first compute capability with it; ``target`` restricts the rule to one builder."""

    dtype: str
    compute_capability: str
    reason: str
    instead: str
    target: str | None = None


MINIMA = (
    Minimum("bfloat16", "8.0", "bfloat16 arithmetic begins with Ampere", "export in fp16"),
    Minimum("float8e4m3fn", "8.9", "FP8 arithmetic begins with Ada", "export in int8 or fp16"),
    Minimum("float8e5m2", "8.9", "FP8 arithmetic begins with Ada", "export in int8 or fp16"),
    Minimum("int4", "8.0", "it takes no 4-bit weights for Turing", "export in int8-weight or fp16", "tensorrt-rtx"),
    Minimum(
        "float",
        "8.0",
        "it has no float32 matrix product for Turing",
        "export in fp16, or add --compute fp16",
        "tensorrt-rtx",
    ),
)

ELSEWHERE = {
    "8.7": "Jetson Orin: build on the device with --target tensorrt",
    "9.0": "Hopper: build on the machine with --target tensorrt",
    "10.0": "data-center Blackwell: build on the machine with --target tensorrt",
    "10.3": "data-center Blackwell: build on the machine with --target tensorrt",
    "11.0": "Jetson Thor: build on the device with --target tensorrt",
}
"""Compute capabilities that TensorRT-RTX does not target, and what does."""


def capability_key(text: str) -> tuple[int, int]:
    """``8.6`` as (8, 6).

    Raises:
        UserError: not written that way.
    """
    if not re.fullmatch(r"\d+\.\d", text):
        raise UserError(f"compute capability '{text}' is not understood; write it like 8.6.")
    major, minor = text.split(".")
    return int(major), int(minor)


def choose_capabilities(flavor: Flavor, wanted: Sequence[str], found: GpuReport) -> tuple[str, ...]:
    """The compute capabilities to build for: those asked for, else those of this machine's GPUs that can be built for.

    Raises:
        UserError: nothing was asked for and there is no GPU, or the builder cannot target one of them.
    """
    here = tuple(dict.fromkeys(gpu.compute_capability for gpu in found.gpus))
    if not flavor.compute_capabilities:
        return _this_machine(flavor, wanted, here, found.reason)
    known_here = tuple(capability for capability in here if capability in flavor.compute_capabilities)
    chosen = tuple(dict.fromkeys(wanted)) or known_here or here
    if not chosen:
        raise UserError(
            f"{found.reason}, so --compute-capability must say what {flavor.target} engines are for: "
            f"one or more of {', '.join(flavor.compute_capabilities)}."
        )
    problems = [_untargeted(flavor, capability) for capability in chosen]
    _raise_all(problem for problem in problems if problem)
    return chosen


def _this_machine(flavor: Flavor, wanted: Sequence[str], here: tuple[str, ...], reason: str) -> tuple[str, ...]:
    """Full TensorRT builds for the GPU that it runs on, the first one."""
    if not here:
        raise UserError(
            f"{reason}; {flavor.target} builds for the GPU in the machine. Run 't5edge build BUNDLE --target "
            f"{flavor.target}' on the device; --target tensorrt-rtx builds without a GPU."
        )
    other = [capability for capability in wanted if capability != here[0]]
    if other:
        raise UserError(
            f"{flavor.target} builds for the GPU in the machine, compute capability {here[0]}, not for "
            f"{', '.join(other)}; build on that device, or use --target tensorrt-rtx."
        )
    return here[:1]


def _untargeted(flavor: Flavor, capability: str) -> str | None:
    if capability in flavor.compute_capabilities:
        return None
    key = capability_key(capability)
    if capability in ELSEWHERE:
        return f"{flavor.target} cannot target compute capability {capability} ({ELSEWHERE[capability]})"
    known = [capability_key(known) for known in flavor.compute_capabilities]
    older = [known for known in known if known <= key]
    hint = f"the nearest is {'.'.join(map(str, max(older)))}" if older else "it begins with 7.5 (Turing)"
    return (
        f"{flavor.target} cannot target compute capability {capability}; {hint}, "
        f"all: {', '.join(flavor.compute_capabilities)}"
    )


def check_dtypes(flavor: Flavor, capabilities: Iterable[str], dtypes: set[str]) -> None:
    """Refuse dtypes that a GPU generation does not have.

    Raises:
        UserError: naming every unsupported pair, the reason, and what to do instead.
    """
    problems = []
    for capability in capabilities:
        for rule in MINIMA:
            applies = rule.dtype in dtypes and rule.target in (None, flavor.target)
            if applies and capability_key(capability) < capability_key(rule.compute_capability):
                problems.append(
                    f"{flavor.target} cannot build {rule.dtype} for compute capability {capability}: {rule.reason} "
                    f"({rule.compute_capability}); {rule.instead}, or build for {rule.compute_capability} and later"
                )
    _raise_all(problems)


def _raise_all(problems: Iterable[str]) -> None:
    text = "; ".join(problems)
    if text:
        raise UserError(text + ".")


def check_form(tool: TensorRT, portable: bool, way_out: str = f"export with --opset {PORTABLE_OPSET}") -> str | None:
    """Whether this version reads such graphs; returns a line for the user where it reads no others.

    ``way_out``: what to do where it does not.

    Raises:
        UserError: it reads portable ones only, and these are not.
    """
    if tool.has_attention:
        return None
    first = f"{tool.flavor.target} {spelled(tool.flavor.oldest_attention)} is the first that reads fused operators"
    if not portable:
        raise UserError(f"{tool.title} reads portable graphs only; {way_out}, or upgrade: {first}.")
    return f"{tool.title} reads portable graphs, as these are ({first})"


def dtypes_of(manifest: Manifest, graphs: Iterable[Path]) -> set[str]:
    """ONNX names of the compute dtype and of every weight's dtype, read from the graphs (weights stay on disk)."""
    import onnx

    dtypes = {manifest.precision.compute}
    for path in graphs:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            name = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            if name != "float":  # float32 scales and norms need no float32 matrix product
                dtypes.add(name)
    return dtypes


def check_locations(graphs: Iterable[Path], known: Container[str]) -> None:
    """TensorRT's parser follows a graph to its weights wherever they lie, through links too.

    Raises:
        UserError: a graph names a file that is not ``known``, whose content is the manifest's.
    """
    import onnx

    for path in graphs:
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location" and entry.value not in known:
                    raise UserError(
                        f"'{path}' reads weights from {entry.value!r}, not a file of the bundle; export it again."
                    )


def check_sources(
    folder: Path, manifest: Manifest, names: Iterable[str], on_file: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """The sha256 of each source file, which must be the manifest's; ``on_file`` is called after each.

    Raises:
        UserError: a file is missing or was changed after the export.
    """
    hashes: dict[str, str] = {}
    for name in names:
        path = folder / name
        recorded = manifest.hashes.get(name)
        if recorded is None or not path.is_file() or sha256_of(path) != recorded:
            raise UserError(
                f"'{path}' is missing or not the file the bundle was exported with; export the bundle again."
            )
        hashes[name] = recorded
        on_file()
    return hashes
