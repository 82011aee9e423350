"""What a bundle records about its TensorRT engines: what each was built from and for, and what running it proved.

engines/<target>/<compute capability>/<graph>.engine.json   one ``EngineRecord``
bundle.json, engines.<target>.<compute capability>          one ``EngineEntry``
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from t5edge.bundle.parity_report import CheckResult
from t5edge.bundle.ports import Limits
from t5edge.bundle.schema import Count, FileName, plain


@dataclass(frozen=True)
class EngineAttention:
    """How the attentions of one engine were built.

    Attributes:
        form: fused, decomposable or split.
        expected: attentions of the graph times profiles.
        fused: fused attention kernels found; None when the plan carries no program text.
        decomposed: nodes that lack a fused kernel in at least one profile.
        kernels: how often each fused kernel occurs.
    """

    form: str
    expected: Count
    fused: Count | None
    decomposed: tuple[str, ...] = ()
    kernels: Mapping[str, Count] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether each is one fused kernel in every profile."""
        return self.fused == self.expected and not self.decomposed


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """One engine.

    Attributes:
        sources: sha256 of the files it was built from, by name.
        limits: the largest sizes it takes.
        file: its plan in the bundle; ``bytes`` and ``sha256`` are the plan's.
        seconds: how long the build took.
        profiles: (min, opt, max) of each axis, by optimization profile.
        weights: offset and bytes in weights.safetensors of the weights that it reads as inputs.
    """

    target: str
    version: str
    compute_capability: str
    graph: str
    sources: Mapping[str, str]
    no_fuse: bool
    separate_weights: bool = False
    limits: Limits
    file: FileName
    bytes: Count
    sha256: str
    seconds: float
    attention: EngineAttention
    profiles: tuple[Mapping[str, tuple[Count, Count, Count]], ...]
    weights: Mapping[str, tuple[Count, Count]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class EngineRun:
    """What running proved on a ``gpu``: pass or fail, and its checks. Without a date: same proof, same bytes."""

    gpu: str
    verdict: str
    rungs: tuple[CheckResult, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"gpu": self.gpu, "verdict": self.verdict, "rungs": [result.short() for result in self.rungs]}


@dataclass(frozen=True)
class EngineEntry:
    """The engines of one target for one compute capability, by graph; ``run`` is a proof or ``not run: reason``."""

    graphs: Mapping[str, EngineRecord]
    run: str | EngineRun

    @staticmethod
    def unpack(data: Mapping[str, Any]) -> dict[str, Any]:
        """The records stand beside ``run``."""
        graphs = {name: record for name, record in data.items() if name != "run"}
        return {"graphs": graphs, "run": data.get("run", "not run: not recorded")}

    def to_dict(self) -> dict[str, Any]:
        return {**plain(self.graphs), "run": plain(self.run)}


Engines = Mapping[str, Mapping[str, EngineEntry]]
"""Target -> compute capability -> its engines."""
