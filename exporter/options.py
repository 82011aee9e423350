"""Options of every command as frozen dataclasses; flags, defaults and help texts are generated from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from calibration.observers import DEFAULT, OBSERVERS
from exporter.errors import UserError
from exporter.ports import Limits
from exporter.texts import Example


def option(help: str, default: Any = None, **extra: Any) -> Any:
    """A dataclass field that carries its flag's help; ``extra``: metavar, choices, nargs, positional."""
    return field(default=default, metadata={"help": help, **extra})


CACHES = ("concat", "in-place", "both")
"""How an engine's decoder keeps keys and values."""
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
    no_rescale: bool = option("do not rescale for fp16 (for study: large activations then overflow)", False)

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_source_length", "max_target_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; a whole number of at least 1 is needed.")
        given = (("cache", CACHES), ("layout", LAYOUTS), ("compute", COMPUTES), ("observer", (None, *OBSERVERS)))
        for name, choices in given:
            if getattr(self, name) not in choices:
                known = ", ".join(choice for choice in choices if choice is not None)
                raise UserError(f"--{name} is '{getattr(self, name)}'; choose one of {known}.")
        if self.blockwise and self.no_verify:
            raise UserError("--blockwise says how to verify and --no-verify not to; leave one of them out.")
        if not self.variant:
            raise UserError("--variant is missing; name a variant, a checkpoint folder or t5-demo.")

    @property
    def limits(self) -> Limits:
        return Limits(self.max_batch, self.max_source_length, self.max_target_length)

    @property
    def folder_name(self) -> str:
        """The default bundle folder: the variant's last part and the precision."""
        last = self.variant.rstrip("/").rpartition("/")[2] or "bundle"
        return f"{last}-{self.precision}"

    def to_dict(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


PATTERN = frozenset("*?[")


@dataclass(frozen=True)
class SweepOptions(ExportOptions):
    """What ``export`` takes on the command line: the options of one export, with lists where it has names."""

    variant: tuple[str, ...] = option(  # type: ignore[assignment]
        "names in the table or patterns such as 't5-efficient-*', hub ids, checkpoint folders, or t5-demo",
        (),
        metavar="V",
    )
    precision: tuple[str, ...] = option(  # type: ignore[assignment]
        "fp32, fp16, bf16, int8, int8-weight or int4-weight; several make a sweep (default: fp32)",
        (),
        metavar="P",
    )
    out: str | None = option(
        "bundle folder (default: <variant>-<precision> here); for a sweep the folder or fsspec URL around them",
        None,
        metavar="DIR",
    )
    force: bool = option("replace an existing bundle; in a sweep, those made from other inputs", False)
    jobs: int | None = option("a sweep's exports at a time (default: as memory and cores allow)", None, metavar="N")
    ray: str | None = option("sweep on the Ray cluster at this address", None, metavar="ADDRESS")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"--jobs is {self.jobs}; a whole number of at least 1 is needed.")

    @property
    def precisions(self) -> tuple[str, ...]:
        """Each asked-for precision once."""
        return tuple(dict.fromkeys(self.precision)) or (ExportOptions.precision,)

    @property
    def is_sweep(self) -> bool:
        """Whether anything asks for more than one plain export."""
        alone = len(self.variant) == len(self.precisions) == 1 and not is_pattern(self.variant[0])
        return not alone or self.jobs is not None or self.ray is not None or "://" in (self.out or "")

    def variants(self) -> list[str]:
        """Each variant once, in the order given; patterns expanded from the table, names in full.

        Raises:
            UserError: a pattern that matches nothing.
        """
        from exporter.variants import expand_patterns, look_up_variant

        names: list[str] = []
        for given in self.variant:
            row = None if Path(given).exists() else look_up_variant(given)
            names += [row.name] if row else [given]
            if is_pattern(given):
                names[-1:] = [match.name for match in expand_patterns([given])]
        return list(dict.fromkeys(names))

    def one(self, variant: str, precision: str, out: str | None = None) -> ExportOptions:
        """The options of a single export."""
        shared = {entry.name: getattr(self, entry.name) for entry in fields(ExportOptions)}
        return ExportOptions(**{**shared, "variant": variant, "precision": precision, "out": out})


def is_pattern(variant: str) -> bool:
    """Whether a variant is spelled with wildcards; the folder of that very name comes first."""
    return bool(PATTERN & set(variant)) and not Path(variant).exists()


@dataclass(frozen=True)
class BuildOptions:
    """What ``build`` takes: engines for a bundle, on the device or ahead of it."""

    bundle: str = option("a bundle written by export", "", positional=True)
    target: tuple[str, ...] = option(
        "tensorrt or tensorrt-rtx; may be given several times", (), metavar="T", repeat=True
    )
    compute_capability: tuple[str, ...] = option(
        "GPU generation of tensorrt-rtx engines, such as 8.6; may be given several times (default: this machine's GPU)",
        (),
        metavar="CC",
        repeat=True,
    )
    no_fuse: bool = option("plain instead of fused attention, for a defective fused kernel", False)
    separate_weights: bool = option(
        "engines read their matrices from weights.safetensors instead of holding them", False
    )
    force: bool = option("build again what is up to date", False)


@dataclass(frozen=True)
class VerifyOptions:
    """What ``verify`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    checkpoint: str | None = option(
        "the checkpoint to compare with (default: the variant the bundle was exported from)",
        None,
        metavar="V",
    )
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    blockwise: bool = option("compare layer by layer, with one layer in memory at a time", False)
    junit: str | None = option("write the rungs as JUnit XML for CI", None, metavar="FILE")


@dataclass(frozen=True)
class GenerateOptions:
    """What ``generate`` takes. Unset flags leave the bundle's generation_config.json in force."""

    bundle: str = option("a bundle written by export", "", positional=True)
    text: tuple[str, ...] = option("prompts; '-' or none reads one per line from standard input", (), positional=True)
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    max_new_tokens: int | None = option("most tokens to generate", None, metavar="N")
    min_new_tokens: int | None = option("fewest tokens to generate", None, metavar="N")
    num_beams: int | None = option("beams; 1 is greedy", None, metavar="N")
    length_penalty: float | None = option("exponent of the length in beam scores", None, metavar="X")
    do_sample: bool = option("draw tokens instead of taking the likeliest", False)
    temperature: float | None = option("sampling temperature", None, metavar="X")
    top_k: int | None = option("sample among the K likeliest tokens", None, metavar="K")
    top_p: float | None = option("sample among the likeliest tokens with this total probability", None, metavar="X")
    seed: int | None = option("seed of the sampling", None, metavar="N")
    repetition_penalty: float | None = option("penalty on tokens already there", None, metavar="X")
    no_repeat_ngram_size: int | None = option("no n-gram of this length twice", None, metavar="N")

    @property
    def settings(self) -> dict[str, Any]:
        """The generation options that were given."""
        names = [entry.name for entry in fields(self) if entry.name not in ("bundle", "text", "target")]
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None and value is not False}


@dataclass(frozen=True)
class BenchOptions:
    """What ``bench`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    target: str = option("onnxruntime, tensorrt or tensorrt-rtx", "onnxruntime", metavar="T")
    batch: tuple[int, ...] = option("batch sizes (default: 1 4 16)", (), metavar="N")
    source: tuple[int, ...] = option("source lengths in tokens (default: 16 64 256 512)", (), metavar="N")
    new_tokens: int = option("tokens to generate for each source", 32, metavar="N")
    threads: int | None = option("threads of the onnxruntime targets (default: one per core)", None, metavar="N")
    quick: bool = option("a few seconds: batch 1, source 16 and 64, at most 8 new tokens", False)
    plot: str | None = option("draw the figures as an image", None, metavar="PNG")

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UserError(f"--threads is {self.threads}; a whole number of at least 1 is needed.")
        if self.threads is not None and not self.target.startswith("onnxruntime"):
            raise UserError(f"--threads is for the onnxruntime targets, not {self.target}; leave it out.")

    @property
    def settings(self) -> dict[str, Any]:
        """What ``bench_bundle`` takes."""
        given: dict[str, Any] = {"new_tokens": self.new_tokens}
        if self.quick:
            given = {"batches": (1,), "sources": (16, 64), "new_tokens": min(self.new_tokens, 8), "rounds": (3, 3)}
        if self.batch:
            given["batches"] = self.batch
        if self.source:
            given["sources"] = self.source
        return given


@dataclass(frozen=True)
class InspectOptions:
    """What ``inspect`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    source_length: int = option("source tokens for the cost columns", 128, metavar="N")
    past_length: int = option("tokens already generated, for the cost columns", 64, metavar="N")


@dataclass(frozen=True)
class ReportOptions:
    """What ``report`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    out: str | None = option("the page to write (default: <bundle>.html beside the bundle)", None, metavar="FILE")


@dataclass(frozen=True)
class VariantsOptions:
    """What ``variants`` takes."""

    pattern: tuple[str, ...] = option("names or patterns such as 't5-efficient-*' (default: all)", (), positional=True)
    plan: bool = option("what each variant would cost on a device: bytes, FLOPs, roofline latency", False)
    precision: str = option("precision to plan for", "fp16", metavar="P")
    device: str | None = option(
        "jetson-orin-nano, jetson-agx-orin, rtx-4060, l4, or this-cpu, which is measured (default)",
        None,
        metavar="NAME",
    )
    bandwidth: float | None = option("another device: memory bandwidth in GB/s, with --tflops", None, metavar="X")
    tflops: float | None = option("another device: peak TFLOP/s, with --bandwidth", None, metavar="X")
    source_length: int = option("source tokens to plan for", 512, metavar="N")
    past_length: int = option("tokens in the cache at the planned decode step", 64, metavar="N")
    plot: str | None = option("draw the plan as an image (default variants: T5-Efficient)", None, metavar="PNG")

    @property
    def planned(self) -> bool:
        """Whether any flag asks for a plan."""
        return self.plan or self.plot is not None


@dataclass(frozen=True)
class DoctorOptions:
    """What ``doctor`` takes: nothing."""
