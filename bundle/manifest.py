"""The manifest of a bundle, ``bundle.json``: typed, checked when it is read, and written by this file alone.

Every attribute of ``Manifest`` is a key of the JSON. What older bundles lack gets what it meant in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from t5edge.bundle.architecture import Architecture
from t5edge.bundle.costs import GraphCosts
from t5edge.bundle.engine_record import EngineEntry, Engines
from t5edge.bundle.files import MANIFEST, FileFacts, describe_files, regular, sha256_of, write_json
from t5edge.bundle.parity_report import ParityReport
from t5edge.bundle.ports import GraphPorts, Limits
from t5edge.bundle.precision import Precision
from t5edge.bundle.records import (
    AdapterFacts,
    Layout,
    PromptFacts,
    RescaleFacts,
    SentenceFacts,
    Speed,
    VocabularyFacts,
)
from t5edge.bundle.schema import FileName, OneOf, Size, plain, read_as, too_deep
from t5edge.errors import UserError

FORMAT = "t5edge-bundle"
FORMAT_VERSION = 1
GRAPHS = ("encoder", "decoder")
"""Graphs that every bundle has; an encoder alone has the first."""
TASKS = ("generate", "encode")
"""What a bundle is for: text from text, which is not written, or the hidden states of an encoder alone."""
STANDARD_OPSET, PORTABLE_OPSET = 23, 17
"""Of the graphs: with fused operators (the decoder that writes its cache in place has 24), or for older runtimes."""
CACHES = ("concat", "in-place", "both")
OMITTED_WHEN_NONE = ("subfolder", "session", "costs", "adapters", "prompts", "vocabulary", "sentence", "labels")
HINT = "pass a bundle written by 't5edge export'."


@dataclass(frozen=True)
class _Format:
    format: str
    format_version: Size


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle is made of and what was found about it.

    Attributes:
        task: ``generate``, or ``encode`` where there is an encoder alone.
        variant, revision, subfolder, random_weights: the checkpoint, as it was named.
        content_key: changes with the checkpoint's files.
        adapters: PEFT adapters that were merged into it, in their order; None where there are none.
        prompts: learnt prompts that a caller may name; None where there are none.
        vocabulary: the part of it that was kept; None where all was. ``vocabulary.json`` lists the ids.
        sentence: how an encoder alone makes one vector of a text; None where it does not.
        labels: what a classifier of tokens calls its labels, by their numbers; None where it is none.
        generation: the checkpoint's generation_config.json.
        options: the options of the export.
        limits: the largest sizes that engines take.
        cache: how the engines' decoder keeps keys and values: concat, in-place or both.
        opset: of the graphs; bundles that do not say it have ``STANDARD_OPSET``.
        session: configuration entries of ONNX Runtime's CPU sessions, by graph; None for the runtime's own.
        rows_share_cross: the decoder takes cross keys, values and mask once per sentence.
        ports: inputs and outputs of every graph, by its file's name.
        parity: the checks on ONNX Runtime; None when they were not run.
        quantization: the plan of a quantized bundle; see ``sums_fit``.
        layout: another layout beside ours; None where there is none.
        speed: of a quantized bundle against float32; None where it was not measured.
        costs: what each graph costs, by its file's name; None in bundles of older versions.
        files: every other file, by its name with forward slashes.
        other: keys of a later version, kept as they are.
    """

    task: Annotated[str, OneOf(TASKS)] = "generate"
    variant: str
    revision: str | None = None
    subfolder: FileName | None = None
    random_weights: int | None = None
    content_key: str | None = None
    adapters: Sequence[AdapterFacts] | None = None
    prompts: Sequence[PromptFacts] | None = None
    vocabulary: VocabularyFacts | None = None
    sentence: SentenceFacts | None = None
    labels: Sequence[str] | None = None
    architecture: Architecture
    precision: Precision
    rescale: RescaleFacts = field(default_factory=RescaleFacts)
    generation: Mapping[str, Any]
    options: Mapping[str, Any] | None = None
    limits: Limits
    cache: Annotated[str, OneOf(CACHES)] = "concat"
    opset: Size = STANDARD_OPSET
    session: Mapping[str, Mapping[str, str]] | None = None
    rows_share_cross: bool = False
    ports: Mapping[str, GraphPorts]
    engines: Engines = field(default_factory=dict)
    tools: Mapping[str, str | None] = field(default_factory=dict)
    parity: ParityReport | None = None
    quantization: Mapping[str, Any] | None = None
    layout: Layout | None = None
    speed: Speed | None = None
    costs: Mapping[str, GraphCosts] | None = None
    files: Mapping[FileName, FileFacts]
    other: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def unpack(data: Mapping[str, Any]) -> dict[str, Any]:
        """Older forms of the fields, and the keys that are none of ours."""
        names = {entry.name for entry in fields(Manifest)} - {"other"}
        given = {name: value for name, value in data.items() if name in names}
        session = given.get("session")
        if isinstance(session, dict) and all(isinstance(value, str) for value in session.values()):
            given["session"] = dict.fromkeys(GRAPHS, session)  # once for both graphs
        own = {*names, *(entry.name for entry in fields(_Format))}
        given["other"] = {name: value for name, value in data.items() if name not in own}
        return given

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of the bundle in ``folder``.

        Raises:
            UserError: the folder is no bundle, of a newer format, or its manifest lacks something.
        """
        if not folder.is_dir():
            raise UserError(f"'{folder}' is not a folder; {HINT}")
        path = folder / MANIFEST
        return Manifest.from_dict(_parsed(path), f"'{path}'")

    @staticmethod
    def from_dict(data: Any, name: str = "the manifest") -> Manifest:
        """The manifest that ``data``, parsed JSON, describes; ``name`` is what messages call it.

        Raises:
            UserError: it is none, of a newer format, or fields are missing or mistyped; all of them are named.
        """
        _check_format(data, name)
        problems: list[str] = []
        read_as(_Format, data, "", problems)
        found = read_as(Manifest, data, "", problems)
        problems += _missing_graphs(data)
        if problems:
            raise UserError(f"{name} does not fit its format: {'; '.join(problems)}. Export the bundle again.")
        manifest: Manifest = found
        return manifest

    def __getitem__(self, name: str) -> Any:
        """An entry as ``bundle.json`` has it: a loaded bundle's manifest was once that JSON object."""
        return self.to_dict()[name]

    def to_dict(self) -> dict[str, Any]:
        """The content of ``bundle.json``."""
        data: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        data |= {entry.name: plain(getattr(self, entry.name)) for entry in fields(self) if entry.name != "other"}
        data["architecture"] = {**self.architecture.to_dict(), "parameters": self.architecture.parameters}
        if self.parity is not None:
            data["parity"] = self.parity.short()
        kept = {name: value for name, value in data.items() if value is not None or name not in OMITTED_WHEN_NONE}
        if self.task == TASKS[0]:  # as in bundles of versions without other tasks
            del kept["task"]
        if self.opset == STANDARD_OPSET:  # likewise
            del kept["opset"]
        return {**kept, **self.other}

    def write(self, folder: Path) -> None:
        """Write ``bundle.json``, in one rename."""
        write_json(folder / MANIFEST, self.to_dict())

    def with_files(self, folder: Path, known_hashes: Mapping[str, str] | None = None) -> Manifest:
        """With the files that are in ``folder`` now; hashes neither given nor in the engines' records are computed."""
        entries = (entry for capabilities in self.engines.values() for entry in capabilities.values())
        recorded = {record.file: record.sha256 for entry in entries for record in entry.graphs.values()}
        return replace(self, files=describe_files(folder, {**(known_hashes or {}), **recorded}))

    def with_engines(self, target: str, capability: str, entry: EngineEntry) -> Manifest:
        """With ``entry`` as the engines of a target for one compute capability."""
        entries = {**self.engines.get(target, {}), capability: entry}
        return replace(self, engines={**self.engines, target: entries})

    @property
    def passed(self) -> bool | None:
        """Whether every check was run and passed; None when parity was not run."""
        return None if self.parity is None else self.parity.passed

    @property
    def portable(self) -> bool:
        """Whether older runtimes read the graphs: they have no fused operators."""
        return self.opset <= PORTABLE_OPSET

    @property
    def sums_fit(self) -> bool:
        """Whether two neighbouring products of rounded inputs and int8 weights never leave 16 bits."""
        return bool((self.quantization or {}).get("sums_fit"))

    @property
    def hashes(self) -> dict[str, str]:
        """The recorded sha256 of each file, by name."""
        return {name: facts.sha256 for name, facts in self.files.items()}

    @property
    def stored_bytes(self) -> int:
        """Bytes of the bundle's files; a link to another of them counts nothing."""
        return sum(facts.bytes for facts in self.files.values() if facts.link is None)


def damaged_files(folder: Path) -> list[str]:
    """Names of files of a bundle that are missing or whose sha256 is not the manifest's."""
    hashes = Manifest.read(folder).hashes
    return [
        name for name, digest in hashes.items() if not (folder / name).is_file() or sha256_of(folder / name) != digest
    ]


def is_bundle(folder: Path) -> bool:
    """Whether the folder is recognisably a bundle of ours, whole or damaged."""
    try:
        _check_format(_parsed(folder / MANIFEST), "")
    except UserError:
        return False
    return True


def _missing_graphs(data: Mapping[str, Any]) -> list[str]:
    """Ports of graphs that the task needs and that are not there; and a task that is not that of the architecture."""
    ports, architecture = data.get("ports"), data.get("architecture")
    wanted = GRAPHS[:1] if data.get("task") == "encode" else GRAPHS
    missing = [graph for graph in wanted if isinstance(ports, dict) and graph not in ports]
    layers = architecture.get("decoder_layers") if isinstance(architecture, dict) else None
    unlike = isinstance(layers, int) and (layers == 0) != (wanted != GRAPHS)
    contradiction = [f"task is {data.get('task', TASKS[0])} with {layers} decoder layers"] if unlike else []
    return [*(f"ports.{graph} is missing" for graph in missing), *contradiction]


def _parsed(path: Path) -> Any:
    try:
        data = json.loads(regular(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"'{path.parent}' has no {MANIFEST}; {HINT}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"'{path}' cannot be read ({error}); export the bundle again.") from error
    except RecursionError as error:
        raise _too_deep(f"'{path}'") from error
    return data


def _check_format(data: Any, name: str) -> None:
    """Whose JSON it is, and of which version.

    Raises:
        UserError: another's, or of a newer format.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{name} is not a t5edge manifest; {HINT}")
    version = data.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(
            f"{name} has format version {version}, this t5edge reads up to {FORMAT_VERSION}; upgrade t5edge."
        )
    if too_deep(data):
        raise _too_deep(name)


def _too_deep(name: str) -> UserError:
    return UserError(f"{name} is nested too deeply for a manifest; export the bundle again.")
