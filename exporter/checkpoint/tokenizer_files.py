"""One ``tokenizer.json`` for every family, prepared at export time; the runtime needs only ``tokenizers``.

tokenizer.json in the checkpoint     taken over, without any truncation and padding saved in it
spiece.model                         converted by transformers, never with remote code
vocab.json and merges.txt            likewise (byte-level BPE)
ByT5                                 built here: a vocabulary of bytes has no file

What the other tokenizer files say is put into the same file: see ``tokenizer_settings``.
"""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

from t5edge.errors import UserError
from t5edge.exporter.checkpoint.tokenizer_settings import with_settings

if TYPE_CHECKING:
    from pathlib import Path

    from t5edge.exporter.checkpoint.checkpoint import Checkpoint

BPE_FILES = ("vocab.json", "merges.txt")
SENTENCEPIECE_FILES = ("spiece.model", "sentencepiece.model", "spm.model", "sentencepiece.bpe.model")
CONVERTERS = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Package to install -> module that transformers imports from it."""
BYTE_SPECIALS = ("<pad>", "</s>", "<unk>")
"""ByT5: ids 0, 1, 2; then the 256 bytes, then the sentinels."""
BYTE_SENTINELS = 125


def tokenizer_json(checkpoint: Checkpoint) -> bytes | None:
    """The checkpoint's tokenizer as the bytes of a ``tokenizer.json``; None where there is none.

    Raises:
        UserError: a damaged file, a tokenizer with more tokens than the model, or no converter package.
    """
    if checkpoint.vocabulary is not None:
        return checkpoint.vocabulary.tokenizer
    folder = checkpoint.tokenizer_folder
    if folder is None:
        return None
    ready = checkpoint.tokenizer_file()
    model = next((path for name in SENTENCEPIECE_FILES if (path := checkpoint.file(name)) is not None), None)
    if ready is not None:
        content = with_settings(_without_lengths(ready), folder)
    elif model is not None:
        content = with_settings(_converted(folder, "SentencePiece"), folder, model)
    elif all(checkpoint.file(name) for name in BPE_FILES):
        content = with_settings(_converted(folder, "byte-level BPE"), folder)
    elif _is_byte_level(checkpoint):
        sentinels = min(BYTE_SENTINELS, checkpoint.architecture.vocab_size - len(BYTE_SPECIALS) - 256)
        content = byte_tokenizer_json(sentinels)
    else:
        return None
    _check(content, checkpoint)
    return content


def byte_tokenizer_json(sentinels: int = BYTE_SENTINELS) -> bytes:
    """ByT5's tokenizer (https://arxiv.org/abs/2105.13626): id = byte + 3, then ``<extra_id_0>`` at 259 ...

    Bytes that form no character (an answer cut inside one) are dropped in decoding, as transformers does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    first = len(BYTE_SPECIALS)
    vocabulary = {token: index for index, token in enumerate(BYTE_SPECIALS)}
    vocabulary |= {character: first + byte for byte, character in enumerate(_byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\ufffd", "")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True) for token in BYTE_SPECIALS])
    tokenizer.add_special_tokens([AddedToken(f"<extra_id_{index}>") for index in range(sentinels)])
    return tokenizer.to_str(pretty=True).encode()


def _byte_alphabet() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's table).

    Printable Latin-1 characters stand for themselves, the others for U+0100 and on in their order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: chr(0x100 + position) for position, byte in enumerate(others)}
    return [shifted.get(byte, chr(byte)) for byte in range(256)]


def _is_byte_level(checkpoint: Checkpoint) -> bool:
    """ByT5 by its tokenizer's class; without tokenizer files, by the vocabulary that only ByT5 has."""
    config = checkpoint.file("tokenizer_config.json")
    if config is not None:
        return str(_read(config).get("tokenizer_class", "")).startswith("ByT5")
    return checkpoint.architecture.vocab_size == len(BYTE_SPECIALS) + 256 + BYTE_SENTINELS


def _without_lengths(path: Path) -> bytes:
    """The file as it is, unless training left truncation or padding in it, which would change inputs."""
    settings = _read(path)
    if settings.get("truncation") is None and settings.get("padding") is None:
        return path.read_bytes()
    return json.dumps({**settings, "truncation": None, "padding": None}, ensure_ascii=False).encode()


def _converted(folder: Path, kind: str) -> bytes:
    """A tokenizer of another form as transformers' fast tokenizer writes it.

    The family's SentencePiece models are all T5's; AutoTokenizer of transformers 5.23 knows no such class for UMT5.
    """
    from transformers import AutoTokenizer, T5Tokenizer

    absent = [package for package, module in CONVERTERS.items() if not _installed(module)]
    if absent and kind == "SentencePiece":
        raise UserError(
            f"{folder} has a {kind} tokenizer; converting it needs 'pip install {' '.join(absent)}'. "
            "Or put a tokenizer.json beside it."
        )
    try:
        kind_of = T5Tokenizer if kind == "SentencePiece" else AutoTokenizer
        tokenizer = kind_of.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        content: str = tokenizer.backend_tokenizer.to_str()
    except Exception as error:  # transformers and protobuf raise many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{folder}: transformers cannot convert its {kind} tokenizer ({reason}). Put a tokenizer.json beside it."
        ) from error
    return content.encode()


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _check(content: bytes, checkpoint: Checkpoint) -> None:
    """Loads the tokenizer, and compares its largest id with the embedding table."""
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_str(content.decode()).get_vocab()
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{checkpoint.source}: tokenizer.json cannot be loaded ({error}). Save it again.") from error
    largest, rows = max(vocabulary.values(), default=0), checkpoint.architecture.vocab_size
    if largest >= rows:
        raise UserError(
            f"{checkpoint.source}: the tokenizer knows ids up to {largest}, the model's embedding ends at "
            f"{rows - 1}. Use the tokenizer that the model was trained with."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object ({error}). Copy or download it again.") from error
