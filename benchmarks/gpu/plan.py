"""What is proven and timed on a GPU, in the order of its worth: what comes late is left out when the time is up."""

from __future__ import annotations

from dataclasses import dataclass

MODELS = {"t5-demo": None, "google-t5/t5-base": 0}
"""Checkpoints, and the seed of their random weights."""
DEMO, BASE = MODELS
PRECISIONS = ("fp16", "int8-weight", "bf16", "fp32", "int8", "int4-weight")
TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ENGINES = ("tensorrt", "tensorrt-rtx")
TARGETS = ("onnxruntime-cuda", "onnxruntime-rtx", *ENGINES)
FORMS = ("default", "no-fuse", "separate-weights", "no-cuda-graph")
"""How engines are built and run; all but the first in float16 alone."""
RUN_FORMS = ("no-cuda-graph", "growing-cache")
"""How ONNX Runtime's CUDA provider can run the same files."""
DISK_GB = 12
"""Bundles and engines of everything."""


@dataclass(frozen=True)
class Step:
    """One thing to find out. ``seconds``: after which it is given up."""

    kind: str
    model: str = ""
    precision: str = ""
    target: str = ""
    form: str = ""
    seconds: float = 90

    @property
    def name(self) -> str:
        """Its file and its row in the table."""
        parts = (self.kind, self.model.rpartition("/")[2], self.precision, self.target, self.form)
        return ".".join(part for part in parts if part)

    @property
    def group(self) -> tuple[str, str]:
        """Steps of one group share a process, so imports and CUDA start once."""
        return self.model, self.precision if self.kind != "torch" else "torch"


def steps(targets: tuple[str, ...] = TARGETS, models: tuple[str, ...] = (DEMO, BASE)) -> tuple[Step, ...]:
    """All of them, in order."""
    found = [Step("machine")]
    for precision in PRECISIONS[:2]:
        found += [step for model in models for step in _of(model, precision, targets)]
    found += [Step("torch", models[-1], dtype, form="eager", seconds=60) for dtype in ("fp16", "fp32")]
    found += [step for model in models for step in _forms(model, targets)]
    for precision in PRECISIONS[2:]:
        found += [step for model in models for step in _of(model, precision, targets)]
    found.append(Step("torch", models[-1], "bf16", form="eager", seconds=60))
    found += [Step("torch", models[-1], dtype, form="compile", seconds=180) for dtype in ("fp16", "fp32")]
    return tuple(found)


def rehearsed() -> tuple[Step, ...]:
    """The steps on a CPU: ONNX Runtime's CPU provider, and the small model."""
    return steps(("onnxruntime",), (DEMO,))


def _of(model: str, precision: str, targets: tuple[str, ...]) -> list[Step]:
    """The graphs of one precision on every target."""
    found = [Step("export", model, precision, seconds=150)]
    for target in targets:
        if target in ENGINES:
            found.append(Step("build", model, precision, target, FORMS[0], seconds=240))
        kinds = ("logits", "time", "verify")
        found += [Step(kind, model, precision, target, FORMS[0], seconds=120) for kind in kinds]
    return found


def _forms(model: str, targets: tuple[str, ...]) -> list[Step]:
    """Engines of fp16 in other forms."""
    found = []
    if TARGETS[0] in targets:
        found += [Step(kind, model, "fp16", TARGETS[0], form) for form in RUN_FORMS for kind in ("logits", "time")]
    for target in (target for target in targets if target in ENGINES):
        for form in FORMS[1:]:
            kinds = ("logits", "time") if form == "no-cuda-graph" else ("build", "logits", "time")
            found += [Step(kind, model, "fp16", target, form, seconds=120) for kind in kinds]
    return found
