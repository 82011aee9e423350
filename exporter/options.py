"""Options of every command as frozen dataclasses; flags, defaults and help texts are generated from them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from exporter.errors import UserError
from exporter.ports import Limits


def option(help: str, default: Any = None, **extra: Any) -> Any:
    """A dataclass field that carries its flag's help; ``extra``: metavar, choices, nargs, positional."""
    return field(default=default, metadata={"help": help, **extra})


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
    calibration: str | None = option("texts, one per line, or JSONL with source and target", None, metavar="FILE")
    max_batch: int = option("largest batch an engine takes", Limits.max_batch, metavar="N")
    max_source_length: int = option("longest source an engine takes, in tokens", Limits.max_source_length, metavar="N")
    max_target_length: int = option("longest target an engine takes, in tokens", Limits.max_target_length, metavar="N")
    no_verify: bool = option("skip the parity ladder; the manifest then says not run", False)
    no_rescale: bool = option("do not rescale for fp16 (for study: large activations then overflow)", False)

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_source_length", "max_target_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; a whole number of at least 1 is needed.")
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
class InspectOptions:
    """What ``inspect`` takes."""

    bundle: str = option("a bundle written by export", "", positional=True)
    source_length: int = option("source tokens for the cost columns", 128, metavar="N")
    past_length: int = option("tokens already generated, for the cost columns", 64, metavar="N")


@dataclass(frozen=True)
class VariantsOptions:
    """What ``variants`` takes."""

    pattern: tuple[str, ...] = option("names or patterns such as 't5-efficient-*' (default: all)", (), positional=True)


@dataclass(frozen=True)
class DoctorOptions:
    """What ``doctor`` takes: nothing."""
