"""Options of every command as frozen dataclasses; flags, defaults and help texts are generated from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from t5edge.bundle.manifest import PORTABLE_OPSET, STANDARD_OPSET, TASKS
from t5edge.bundle.ports import Limits
from t5edge.bundle.precision import PRECISIONS, Precision, precision
from t5edge.bundle.schema import InFolder
from t5edge.calibration.observers import DEFAULT, OBSERVERS
from t5edge.errors import UserError
from t5edge.exporter.checkpoint.languages import scripts_of
from t5edge.exporter.form import Form, check_portable
from t5edge.exporter.reference.texts import Example
from t5edge.parity.judged_texts import BUDGET, LEAST, LEAST_ON_BUDGET
from t5edge.runtime.backend import find_backend


def option(help: str, default: Any = None, **extra: Any) -> Any:
    """A dataclass field that carries its flag's help; ``extra``: metavar, choices, nargs, positional."""
    return field(default=default, metadata={"help": help, **extra})


CACHES = ("concat", "in-place", "both")
"""How an engine's decoder keeps keys and values."""
TEXTS_HELP = (
    "judge on these texts: one per line, or JSONL with source and optional target; none that was calibrated on "
    "(default: texts of the package, or the checkpoint's heldout.jsonl)"
)
BUDGET_HELP = (
    f"judge texts for so long, but {LEAST_ON_BUDGET} target positions at least "
    f"(default: {LEAST} positions, and what {BUDGET:g} seconds allow)"
)
OPSETS = (STANDARD_OPSET, PORTABLE_OPSET)
"""Of the graphs: with fused operators, or without."""
LAYOUTS = ("t5edge", "optimum")
"""Whose files a bundle holds: ours alone, or optimum's and transformers.js' beside them."""
COMPUTES = ("auto", "fp32", "fp16")
"""What the unquantized parts of a quantized bundle compute in."""


@dataclass(frozen=True)
class ExportOptions:
    """What ``export`` takes."""

    variant: str = option("a name in the table, a hub id, a checkpoint folder, or t5-demo", "", metavar="V")
    precision: str = option("fp32, fp16, bf16, int8, int8-weight or int4-weight", "fp32", metavar="P")
    target: tuple[str, ...] = option(
        "onnxruntime, tensorrt or tensorrt-rtx; may be given several times (default: what doctor finds)",
        (),
        metavar="T",
        repeat=True,
    )
    out: str | None = option("bundle folder (default: <variant>-<precision> here)", None, metavar="DIR")
    force: bool = option("replace an existing bundle", False)
    random_weights: int | None = option("random weights from this seed, for the structure alone", None, metavar="SEED")
    revision: str | None = option("branch, tag or commit on the hub", None, metavar="REV")
    adapter: tuple[str, ...] = option(
        "PEFT adapter to merge, a folder or a hub id; several are merged in their order", (), metavar="DIR", repeat=True
    )
    prompt: tuple[str, ...] = option(
        "learnt prompt of PEFT, a folder or a hub id, under a name that generate takes; may be given several times",
        (),
        metavar="NAME=DIR",
        repeat=True,
    )
    subfolder: str | None = option(
        "folder of the checkpoint inside the variant, such as text_encoder_2 of a diffusers pipeline",
        None,
        metavar="NAME",
    )
    task: str | None = option(
        "encode: the encoder alone, of any checkpoint (default: what the checkpoint holds)", None, choices=TASKS
    )
    vocabulary: str | None = option(
        "keep only the pieces that these texts need (one per line, or JSONL with source and target)",
        None,
        metavar="FILE",
    )
    vocabulary_floor: int = option("occurrences in them that a piece needs to be kept", 1, metavar="N")
    languages: tuple[str, ...] = option(
        "keep only pieces in the scripts of these languages, such as de pt-BR sr-Latn (those of one script are not "
        "told apart); with --vocabulary: the pieces of its texts, and single characters of these scripts alone",
        (),
        metavar="TAG",
        repeat=True,
    )
    calibration: str | tuple[Example, ...] | None = option(
        "texts, one per line, or JSONL with source and target", None, metavar="FILE"
    )
    observer: str | None = option(
        f"range of rounded activations, int8 only: {', '.join(OBSERVERS)} (default: {DEFAULT})",
        None,
        choices=tuple(OBSERVERS),
    )
    count_ties: bool = option(
        "hold a quantized bundle to the best tokens even where two are nearly equal: more layers stay in float", False
    )
    compute: str = option(
        "what a quantized bundle computes in where nothing is rounded to integers: fp32, fp16 (for GPUs), "
        "or auto: fp16 when every --target is tensorrt or tensorrt-rtx (default: auto)",
        "auto",
        choices=COMPUTES,
    )
    require_speedup: bool = option("exit 1 unless a quantized bundle is faster than fp32 on this machine's CPU", False)
    compute_capability: tuple[str, ...] = option(
        "GPU generation of tensorrt-rtx engines, such as 8.6; may be given several times (default: this machine's GPU)",
        (),
        metavar="CC",
        repeat=True,
    )
    cache: str = option(
        "decoder of the engines: concat (cache grows) or in-place (fixed size, no copies), or both",
        "concat",
        choices=CACHES,
    )
    layout: str = option(
        "t5edge, or optimum: also the files that ORTModelForSeq2SeqLM and transformers.js read",
        "t5edge",
        choices=LAYOUTS,
    )
    opset: int | None = option(
        f"of the graphs: {STANDARD_OPSET}, or {PORTABLE_OPSET} for TensorRT before 10.14 and other older runtimes "
        f"(default: {STANDARD_OPSET}, or {PORTABLE_OPSET} where TensorRT here reads no other)",
        None,
        choices=OPSETS,
    )
    no_fuse: bool = option("engines with plain instead of fused attention", False)
    separate_weights: bool = option(
        "engines read their matrices from weights.safetensors instead of holding them", False
    )
    max_batch: int = option("largest batch an engine takes", Limits.max_batch, metavar="N")
    max_source_length: int = option("longest source an engine takes, in tokens", Limits.max_source_length, metavar="N")
    max_target_length: int = option("longest target an engine takes, in tokens", Limits.max_target_length, metavar="N")
    no_verify: bool = option("skip the parity ladder; the manifest then says not run", False)
    blockwise: bool = option(
        "verify layer by layer, with one layer in memory (default: where the model would not fit)", False
    )
    texts: str | None = option(TEXTS_HELP, None, metavar="FILE")
    time_budget: float | None = option(BUDGET_HELP, None, metavar="SECONDS")
    no_rescale: bool = option("do not rescale for fp16 (for study: large activations then overflow)", False)

    def __post_init__(self) -> None:
        for name in ("vocabulary_floor", "max_batch", "max_source_length", "max_target_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; a whole number of at least 1 is needed.")
        choice = (
            ("cache", CACHES),
            ("layout", LAYOUTS),
            ("opset", (None, *OPSETS)),
            ("compute", COMPUTES),
            ("observer", (None, *OBSERVERS)),
            ("task", (None, *TASKS)),
        )
        for name, choices in choice:
            if getattr(self, name) not in choices:
                known = ", ".join(str(choice) for choice in choices if choice is not None)
                raise UserError(f"--{name} is '{getattr(self, name)}'; choose one of {known}.")
        given = {"blockwise": self.blockwise, "texts": self.texts, "time-budget": self.time_budget}
        for name in (name for name, value in given.items() if value and self.no_verify):
            raise UserError(f"--{name} says how to verify and --no-verify not to; leave one of them out.")
        check_budget(self.time_budget)
        if self.subfolder is not None and InFolder().problem(self.subfolder):
            raise UserError(f"--subfolder is '{self.subfolder}'; a folder inside the variant is needed.")
        if self.vocabulary_floor > 1 and not self.vocabulary:
            raise UserError("--vocabulary-floor counts pieces in the texts of --vocabulary; name them.")
        if self.languages:
            scripts_of(self.languages)
        if not self.variant:
            raise UserError("--variant is missing; name a variant, a checkpoint folder or t5-demo.")

    @property
    def limits(self) -> Limits:
        return Limits(self.max_batch, self.max_source_length, self.max_target_length)

    @property
    def form(self) -> Form:
        """The graphs that they ask for; standard ones where they leave the opset to ``pipeline.choose_opset``."""
        return Form(self.cache, self.layout, self.max_target_length, self.opset or STANDARD_OPSET)

    @property
    def folder_name(self) -> str:
        """The default bundle folder: the variant's last part, the subfolder and the precision."""
        last = self.variant.rstrip("/").rpartition("/")[2] or "bundle"
        inside = "" if self.subfolder is None else f"-{self.subfolder.replace('/', '-')}"
        return f"{last}{inside}-{self.precision}"

    def to_dict(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


def check_budget(seconds: float | None) -> None:
    """Raises ``UserError`` where ``seconds`` are no time budget."""
    if seconds is not None and not seconds >= 0:
        raise UserError(f"--time-budget is {seconds}; a number of seconds is needed.")


def export_options(variant: str, precision: str, **given: Any) -> ExportOptions:
    """Options as ``t5edge.export`` takes them: the fields of ``ExportOptions`` as keywords.

    ``targets=("onnxruntime",)`` is accepted for ``target``; ``calibration`` may be a file or an iterable of texts, of
    (source, target) pairs or of ``Example``.

    Raises:
        UserError: an unknown keyword, or values that mean nothing.
    """
    from t5edge.calibration.texts import examples_from

    if "targets" in given:
        given["target"] = tuple(given.pop("targets"))
    for name in ("out", "calibration", "texts", "vocabulary"):
        if isinstance(given.get(name), Path):
            given[name] = str(given[name])
    if not isinstance(given.get("calibration"), (str, type(None))):
        given["calibration"] = examples_from(given["calibration"])
    try:
        return ExportOptions(variant=str(variant), precision=precision, **given)
    except TypeError as error:
        raise UserError(f"export: {error}; see t5edge.options.ExportOptions") from error


TEXT_FILES = ("calibration", "texts", "vocabulary")
"""Options that name a file of texts, of which a bundle records the hash."""
ELSEWHERE = ("variant", "precision", "out", "force")
"""Options that say where a bundle goes, or that the manifest holds by their content."""


def checkpoint_options(options: ExportOptions) -> dict[str, Any]:
    """What ``open_checkpoint`` takes besides the variant."""
    from t5edge.exporter.checkpoint.trimmed import Wanted

    wanted = Wanted(options.vocabulary, options.vocabulary_floor, options.languages)
    return {
        "random_weights": options.random_weights,
        "revision": options.revision,
        "subfolder": options.subfolder,
        "adapters": options.adapter,
        "prompts": options.prompt,
        "task": options.task,
        "vocabulary": wanted if wanted.corpus or wanted.languages else None,
    }


def wanted_row(options: ExportOptions) -> Precision:
    """The row that the options ask for, with the compute dtype of ``--compute``.

    Raises:
        UserError: no such precision, or options that mean nothing in it.
    """
    row = precision(options.precision)
    if options.observer is not None and not row.quantize_activations:
        rows = ", ".join(other.name for other in PRECISIONS if other.quantize_activations)
        raise UserError(
            f"--observer {options.observer} chooses ranges of rounded activations, and {row.name} rounds none; "
            f"leave it out, or export in {rows}."
        )
    if options.count_ties and not row.quantized:
        raise UserError(f"--count-ties is for quantized precisions, and {row.name} quantizes nothing; leave it out.")
    row = replace(row.computing(_compute(options, row)), count_ties=options.count_ties)
    check_portable(options.form, row)
    if options.require_speedup and row.quantized and row.compute != "float":
        raise UserError(
            f"--require-speedup times the bundle on this machine's CPU, where {row.compute} has no kernels; "
            "leave it out, or add --compute fp32."
        )
    return row


def _compute(options: ExportOptions, row: Precision) -> str:
    """ONNX name of the compute dtype."""
    if options.compute == "auto":
        engines = bool(options.target) and all(find_backend(target).is_engine for target in options.target)
        return "float16" if row.quantized and engines else row.compute
    wanted = {"fp32": "float", "fp16": "float16"}[options.compute]
    if not row.quantized and wanted != row.compute:
        raise UserError(
            f"--compute {options.compute} is for quantized precisions, and {row.name} quantizes nothing; "
            f"leave it out, or use --precision {options.compute}."
        )
    return wanted


def recorded_options(options: ExportOptions) -> dict[str, Any]:
    """The options a bundle was made with, JSON-able; texts by their hash."""
    kept = {name: value for name, value in options.to_dict().items() if name not in ELSEWHERE}
    unused = [name for name in ("adapter", "prompt", "subfolder", "task", "languages") if not getattr(options, name)]
    unused += [] if options.vocabulary else ["vocabulary", "vocabulary_floor"]
    unused += [] if options.form.portable else ["opset"]
    for name in unused:  # as in bundles of versions without them
        del kept[name]
    hashes = {name: _digest(getattr(options, name)) for name in TEXT_FILES if name in kept}
    plain: dict[str, Any] = json.loads(json.dumps({**kept, **hashes}))
    return plain


def _digest(calibration: Any) -> str | None:
    """Hash of a file's bytes, or of examples; unreadable files are left to the export, which names them."""
    if calibration is None:
        return None
    try:
        data = Path(calibration).read_bytes() if isinstance(calibration, str) else repr(calibration).encode()
    except OSError:
        return "unreadable"
    return hashlib.sha256(data).hexdigest()
