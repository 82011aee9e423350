"""A loaded bundle: hidden states, logits, token ids, text. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from t5edge.bundle.manifest import Manifest
from t5edge.bundle.records import NO_PROMPT
from t5edge.errors import UserError
from t5edge.runtime.answers import Answer, reader
from t5edge.runtime.backend import find_backend
from t5edge.runtime.batches import BATCH_TOKENS, batches, check_pairs, listed
from t5edge.runtime.encoder import BundleEncoder
from t5edge.runtime.generation.drafts import Drafting
from t5edge.runtime.generation.options import GenerationOptions, read_options
from t5edge.runtime.generation.pace import Pace
from t5edge.runtime.generation.scores import pick_log_probabilities, pick_scores
from t5edge.runtime.generation.search import OnToken, run_search
from t5edge.runtime.generation.targets import TargetScores
from t5edge.runtime.inputs import as_ids, as_labels, check_memory
from t5edge.runtime.intact import check_intact
from t5edge.runtime.prompts import Prompts, chosen_ids, with_prompts
from t5edge.runtime.scoring import score_first_tokens, score_ids, score_rows
from t5edge.runtime.stream import stream_text

if TYPE_CHECKING:
    from t5edge.runtime.generation.scores import Generated, Pick
    from t5edge.runtime.generation.step import Scores, Tokens


class BundleModel(BundleEncoder):
    """What ``t5edge.load`` returns. Arrays are numpy, batch first."""

    def __init__(self, folder: Path, manifest: Manifest, step_model: Any) -> None:
        super().__init__(folder, manifest, step_model)
        self.pace = Pace()

    def require_decoder(self, what: str) -> None:
        """Raises: UserError when the bundle is an encoder alone and has no ``what``."""
        if self.architecture.encoder_alone:
            raise UserError(
                f"'{self.folder}' is an encoder alone and has no {what}; call encode(), or run t5edge encode."
            )

    def logits(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None,
        decoder_input_ids: np.ndarray,
        *,
        prompt: Prompts = None,
    ) -> np.ndarray:
        """Teacher-forced logits, float32 [batch, target, vocab], one cached step per target token.

        ``input_ids``, ``attention_mask`` int [batch, source]; ``decoder_input_ids`` int [batch, target]; ``prompt``:
        see ``generate``.

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, or more than the memory holds.
        """
        ids, mask, targets = self._teacher_forced(input_ids, attention_mask, decoder_input_ids, prompt)
        state = self.step_model.encode(ids, mask)
        steps = [self.step_model.step(state, targets[:, [column]]).copy() for column in range(targets.shape[1])]
        return np.concatenate(steps, axis=1)

    def logits_uncached(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None,
        decoder_input_ids: np.ndarray,
        *,
        prompt: Prompts = None,
    ) -> np.ndarray:
        """The same in one step over the whole target, past length 0."""
        ids, mask, targets = self._teacher_forced(input_ids, attention_mask, decoder_input_ids, prompt)
        logits: np.ndarray = self.step_model.step(self.step_model.encode(ids, mask), targets)
        return logits

    @overload
    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        prompt: Prompts = None,
        on_token: OnToken | None = None,
        return_scores: Literal[False] = False,
        assistant: BundleModel | None = None,
        **options: Any,
    ) -> Tokens: ...

    @overload
    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        prompt: Prompts = None,
        on_token: OnToken | None = None,
        return_scores: Literal[True],
        normalize_logits: bool = False,
        assistant: BundleModel | None = None,
        **options: Any,
    ) -> Generated: ...

    def generate(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        *,
        prompt: Prompts = None,
        on_token: OnToken | None = None,
        return_scores: bool = False,
        normalize_logits: bool = False,
        assistant: BundleModel | None = None,
        **options: Any,
    ) -> Tokens | Generated:
        """Token ids int64 [batch * num_return_sequences, length], decoder start token first.

        ``prompt``: of a bundle with learnt prompts, one for all sources or a list with one for each; ``none`` for none.
        ``options`` are those of ``GenerationOptions`` (max_new_tokens, num_beams, ...) over the bundle's own.
        ``return_scores``: a ``Generated``, whose ``transition_scores`` and ``sequences_scores`` are those of
        transformers; ``normalize_logits`` is that of its ``compute_transition_scores``: log-probabilities without beams
        too. ``assistant``: a smaller bundle of the same vocabulary that drafts tokens.

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, a wrong option, too large for the memory.
        """
        self.require_decoder("generate()")
        pick = pick_log_probabilities if normalize_logits else pick_scores
        source, chosen = self.source(input_ids, attention_mask, prompt), self.options(**options)
        found = self._search(*source, chosen, on_token, pick if return_scores else None, assistant)
        return found if return_scores else found.sequences

    def _search(
        self,
        ids: Tokens,
        mask: Tokens,
        options: GenerationOptions,
        on_token: OnToken | None,
        pick: Pick | None,
        assistant: BundleModel | None,
        *,
        padding_scores: bool = True,
    ) -> Generated:
        """``ids`` and ``mask`` are checked, and learnt prompts stand in front; without ``pick`` all scores are 0."""
        check_memory(self.architecture, len(ids) * options.copies, ids.shape[1], options.total_length)
        drafting = Drafting(self.pace, assistant and self._checked_assistant(assistant), padding_scores)
        return run_search(self.step_model, ids, mask, options, on_token, pick, drafting)

    def score(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None,
        target_ids: np.ndarray,
        *,
        prompt: Prompts = None,
    ) -> TargetScores:
        """Natural-log probability of every target token and of every target, teacher-forced.

        ``input_ids``, ``attention_mask`` int [batch, source]; ``target_ids`` int [batch, target] are transformers'
        labels: without the start token, usually with the end token, -100 where a row has no more. Runs in batches of
        bounded size, and never holds more than 256 MiB of logits (or those of one position of one row).

        Raises:
            UserError: ids outside the vocabulary, wrong shapes or dtypes, an empty target, too large for the memory.
        """
        self.require_decoder("score()")
        ids, mask = self.source(input_ids, attention_mask, prompt)
        return score_ids(self, ids, mask, as_labels("target_ids", target_ids, self.vocab_size))

    def score_text(self, sources: Sequence[str], targets: Sequence[str], *, prompt: Prompts = None) -> TargetScores:
        """``score`` of text: what the model thinks of each target as the answer to its source, the end token included.

        Rows are in the order given, whatever the batches.

        Raises:
            UserError: as many targets as sources are needed; as ``score`` and the tokenizer.
        """
        check_pairs("targets", len(listed(targets)), "sources", len(listed(sources)))
        return score_rows(self, self._rows(sources, prompt), self.tokenizer.ids(targets))

    def score_first(self, sources: Sequence[str], choices: Sequence[str | int], *, prompt: Prompts = None) -> Scores:
        """Natural-log probabilities of the first token among ``choices``, float32 [sources, choices].

        What rankers such as monoT5 need: ``score_first(prompts, ["true", "false"])[:, 0]``. A choice is an id or a text
        of one token; the probabilities of a row's choices sum to 1.

        Raises:
            UserError: a choice that is not one token, or an id outside the vocabulary; as the tokenizer.
        """
        self.require_decoder("score_first()")
        return score_first_tokens(self, self._rows(sources, prompt), choices)

    def options(self, **options: Any) -> GenerationOptions:
        """The bundle's generation settings with ``options`` over them.

        Raises:
            UserError: an unknown option, a wrong value, or a token id outside the vocabulary.
        """
        chosen = read_options(self.manifest.generation, **options)
        chosen.check_ids(self.vocab_size)
        return chosen

    @overload
    def generate_text(
        self, texts: Sequence[str], *, return_scores: Literal[False] = False, **options: Any
    ) -> list[str]: ...

    @overload
    def generate_text(self, texts: Sequence[str], *, return_scores: Literal[True], **options: Any) -> list[Answer]: ...

    def generate_text(
        self,
        texts: Sequence[str],
        *,
        prompt: Prompts = None,
        skip_special_tokens: bool = True,
        on_batch: Callable[[int], None] | None = None,
        return_scores: bool = False,
        assistant: BundleModel | None = None,
        **options: Any,
    ) -> list[str] | list[Answer]:
        """Texts for texts, in their order, ``num_return_sequences`` for each; see ``generate`` for the options.

        Texts of like length share a batch, and no batch holds more than ``BATCH_TOKENS`` source tokens (but a longer
        text has a batch of its own); all that fits into one batch runs as one, in the order given.
        ``on_batch`` is told how many texts each batch has answered. With ``return_scores`` every text is an ``Answer``.
        """
        self.require_decoder("generate_text()")
        rows, chosen = self._rows(texts, prompt), self.options(**options)
        read, answers = reader(self.tokenizer, chosen, skip_special_tokens, return_scores), dict[int, list[Any]]()
        pick = pick_log_probabilities if return_scores else None
        for number, batch in enumerate(batches([len(row) for row in rows], BATCH_TOKENS // chosen.copies)):
            ids, mask = self.tokenizer.pad([rows[index] for index in batch])
            seeded = chosen if chosen.seed is None else replace(chosen, seed=chosen.seed + number)
            source = self.source(ids, mask, NO_PROMPT)
            found = read(self._search(*source, seeded, None, pick, assistant, padding_scores=False))
            each = len(found) // len(batch)
            answers |= {index: found[place * each : (place + 1) * each] for place, index in enumerate(batch)}
            if on_batch is not None:
                on_batch(len(batch))
        return [answer for index in range(len(texts)) for answer in answers[index]]

    @overload
    def stream_text(
        self, texts: Iterable[str], *, return_scores: Literal[False] = False, **options: Any
    ) -> Iterator[list[str]]: ...

    @overload
    def stream_text(
        self, texts: Iterable[str], *, return_scores: Literal[True], **options: Any
    ) -> Iterator[list[Answer]]: ...

    def stream_text(
        self,
        texts: Iterable[str],
        *,
        prompt: str | None = None,
        batch_size: int = 16,
        skip_special_tokens: bool = True,
        first: int = 0,
        return_scores: bool = False,
        **options: Any,
    ) -> Iterator[list[str]] | Iterator[list[Answer]]:
        """``generate_text`` for a list of any length: the answers of each text, in order, as soon as they are there.

        ``batch_size`` rows are under way at a time. On a CPU, with ``decoder_buffered.onnx`` and no beams, a row that
        has ended is given the next text at once. Texts are read some hundreds ahead. ``first`` is the number of the
        first text, which with the seed decides what is drawn for it.

        Raises:
            UserError: as ``generate_text``, when the first answer is asked for.
        """
        self.require_decoder("text to generate")
        (front,) = chosen_ids(self.manifest.prompts or (), prompt, 1)
        chosen = self.options(**options)
        read = reader(self.tokenizer, chosen, skip_special_tokens, return_scores)
        return stream_text(self, texts, chosen, batch_size, first, front, read, scored=return_scores)

    def _checked_assistant(self, assistant: BundleModel) -> Any:
        assistant.require_decoder("tokens to draft")
        if self.manifest.prompts or assistant.manifest.prompts:
            raise UserError("a bundle with learnt prompts takes no assistant and is none; leave out assistant.")
        if assistant.vocab_size != self.vocab_size:
            raise UserError(
                f"the assistant '{assistant.folder}' has {assistant.vocab_size} ids and '{self.folder}' has "
                f"{self.vocab_size}; it must share the vocabulary."
            )
        return assistant.step_model

    def _teacher_forced(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None,
        decoder_input_ids: np.ndarray,
        prompt: Prompts,
    ) -> tuple[Tokens, Tokens, Tokens]:
        self.require_decoder("logits")
        ids, mask = self.source(input_ids, attention_mask, prompt)
        targets = as_ids("decoder_input_ids", decoder_input_ids, self.vocab_size)
        check_pairs("decoder_input_ids", len(targets), "input_ids", len(ids))
        check_memory(self.architecture, len(ids), ids.shape[1], targets.shape[1])
        return ids, mask, targets

    def source(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None, prompt: Prompts
    ) -> tuple[Tokens, Tokens]:
        """Ids and mask, int64 [batch, source], with learnt prompts in front."""
        return with_prompts(self.architecture, self.manifest.prompts or (), input_ids, attention_mask, prompt)

    def _rows(self, texts: Sequence[str], prompt: Prompts) -> list[list[int]]:
        """Ids of each text, with a learnt prompt in front."""
        fronts = chosen_ids(self.manifest.prompts or (), prompt, len(listed(texts)))
        return [[*front, *row] for front, row in zip(fronts, self.tokenizer.ids(texts), strict=True)]


def load(folder: str | Path, target: str = "onnxruntime", *, check: bool = True, **settings: Any) -> BundleModel:
    """Open a bundle on ``target``; ``check`` compares its files with the manifest first (``check_intact``).

    Raises:
        UserError: not a bundle, files that changed, an unknown target, or the target cannot run it here.
    """
    find_backend(target)
    manifest = Manifest.read(Path(folder))
    if check:
        check_intact(Path(folder), manifest)
    return open_model(Path(folder), manifest, target, **settings)


def open_model(folder: Path, manifest: Manifest, target: str = "onnxruntime", **settings: Any) -> BundleModel:
    """Open the bundle in ``folder`` under a manifest that need not be written yet; raises as ``load``."""
    return BundleModel(folder, manifest, find_backend(target).open(folder, manifest, **settings))
