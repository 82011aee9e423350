"""The check ``graphs``: every graph, apart from its rounding, against PyTorch with the weights that are stored.

Both sides compute in float32 with the same numbers, so float32's tolerance holds in every precision: a wrong head, mask
or cache cannot hide behind quantization noise. What rounding costs is judged elsewhere.

    encoder        texts, one token, and more tokens than the stated maximum
    each decoder   texts at once and in steps, more than 300 positions in steps, beams that change places with padding
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from t5edge.bundle.parity_report import CheckResult, at_most, failure, not_run
from t5edge.bundle.ports import EMBEDDING
from t5edge.errors import UserError
from t5edge.exporter.reference.protocol import Outputs
from t5edge.exporter.reference.texts import Batch, target_mask
from t5edge.kernels.roles import norms
from t5edge.parity.exact.cases import Case, decoder_cases, encoder_batches
from t5edge.parity.exact.reference import stored_reference
from t5edge.parity.exact.stored import StoredWeights
from t5edge.parity.exact.widened import WidenedGraphs
from t5edge.parity.limits import FLOAT32_ERROR, judge_error
from t5edge.parity.measures import LogitErrors, compare_logits, relative_error
from t5edge.parity.subject import label_logits

if TYPE_CHECKING:
    from t5edge.exporter.reference.whole import WholeReference
    from t5edge.parity.subject import Opener, Subject
    from t5edge.runtime.model import BundleModel

WORST_POSITION = 10 * FLOAT32_ERROR
"""Relative error of the worst position: a single one may be less lucky than all of them."""
IN_CROSS = ("texts",)


def graphs(subject: Subject, name: str) -> Iterator[CheckResult]:
    """The encoder, then each form of the decoder that the bundle has, if any."""
    if subject.opener.mapped:
        yield not_run(name, "it needs the whole model in memory; its layers are compared one by one")
        return
    opener, checkpoint = subject.opener, subject.checkpoint
    widened = WidenedGraphs(opener.folder, opener.manifest)
    reference = stored_reference(StoredWeights(opener.folder, checkpoint))
    a = checkpoint.architecture
    cases = [] if a.encoder_alone else decoder_cases(subject.workload, a.decoder_start_token_id, a.vocab_size)
    batches = encoder_batches(subject.workload)
    expected = dict(reference.outputs({case.name: case.paths() for case in cases}))
    yield _epsilons(name, opener)
    try:
        for place, (form, model) in enumerate(widened.models()):
            if place == 0:
                yield from _encoder(name, model, batches, reference)
            for case in cases:
                yield from _decoder(name, form, model, case, expected[case.name], a.pad_token_id)
    except UserError as error:
        yield failure(name, str(error))


def _epsilons(name: str, opener: Opener) -> CheckResult:
    """Every norm's epsilon is the checkpoint's, rescaled as the residual stream is.

    An epsilon ten times too large moves most models' numbers by less than float32 does, and some inputs' by far more.
    """
    wrong = []
    for form in opener.manifest.ports:
        k = opener.rescale_k("encoder" if form == "encoder" else "decoder")
        expected = opener.manifest.architecture.norm_epsilon * 4.0**-k
        found = norms(ir.load(opener.folder / f"{form}.onnx").graph)
        wrong += [f"{form}: {norm.name}" for norm in found if not math.isclose(norm.epsilon, expected, rel_tol=1e-6)]
    first = f", the first {wrong[0]}" if wrong else ""
    return at_most(name, f"norms with another epsilon{first}", len(wrong), 0)


def _encoder(
    name: str, model: BundleModel, batches: Mapping[str, Batch], reference: WholeReference
) -> Iterator[CheckResult]:
    """Hidden states, sentence embeddings and label logits of the worst batch; keys and values of texts."""
    worst, where, cross, embeddings, labels = -1.0, "", {}, [], []
    for key, expected in reference.outputs(batches, IN_CROSS):
        batch = batches[key]
        seen = batch.attention_mask.astype(bool)
        found = dict(model.step_model.hidden_and_cross(batch.input_ids, batch.attention_mask))
        error = relative_error(found["last_hidden_state"][seen], expected.hidden[seen])
        worst, where = (error, key) if error > worst else (worst, where)
        if expected.embedding is not None:
            embeddings.append(relative_error(found[EMBEDDING], expected.embedding))
        if expected.labels is not None:
            own, wanted = np.asarray(label_logits(found)), expected.labels
            rows = seen if wanted.ndim == 3 else slice(None)
            labels.append(relative_error(own[rows], wanted[rows]))
        for port, wanted in expected.cross.items():
            cross[port] = relative_error(found[port].swapaxes(1, 2)[seen], wanted.swapaxes(1, 2)[seen])
    yield judge_error(name, f"encoder output, worst of {len(batches)} batches", worst, FLOAT32_ERROR, batch=where)
    if embeddings:
        yield judge_error(name, f"sentence embeddings, worst of {len(batches)} batches", max(embeddings), FLOAT32_ERROR)
    if labels:
        yield judge_error(name, f"label logits, worst of {len(batches)} batches", max(labels), FLOAT32_ERROR)
    if not cross:
        return
    port = max(cross, key=lambda port: cross[port])
    yield judge_error(name, "cross keys and values", cross[port], FLOAT32_ERROR, worst=port)


def _decoder(
    name: str, form: str, model: BundleModel, case: Case, expected: Outputs, pad: int
) -> Iterator[CheckResult]:
    """Logits of one case by one form of the decoder, over all positions and at the worst of them."""
    case = case.within(_capacity(model, form))
    rows = case.paths().decoder_input_ids
    mask = target_mask(rows, pad)
    what = f"{form}, {case.name}"
    found = case.run(model.step_model)
    errors = compare_logits(found[mask], expected.logits[:, : rows.shape[1]][mask])
    if errors.not_finite:
        yield failure(name, f"NaN or infinity in the logits of {what}")
        return
    facts = {"positions": errors.positions, "worst_position": errors.worst_position}
    yield judge_error(name, f"logits, {what}", errors.relative, FLOAT32_ERROR, **facts)
    yield at_most(name, f"worst position, {what}", errors.worst_position, WORST_POSITION, **_place(errors, mask))


def _capacity(model: BundleModel, form: str) -> int | None:
    """Positions of a cache whose size is fixed, without those of learnt prefixes."""
    ports = model.manifest.ports[form].inputs
    sizes = [port.axes[2] for port in ports if port.name.endswith("decoder.key")]
    return sizes[0] - model.architecture.prefix_length if isinstance(sizes[0], int) else None


def _place(errors: LogitErrors, mask: np.ndarray) -> dict[str, int]:
    row, position = np.argwhere(mask)[int(errors.error.argmax())]
    return {"row": int(row), "position": int(position)}
