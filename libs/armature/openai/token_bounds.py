"""How much text a token can stand for, so that a prompt beyond the context is refused before it is tokenized."""

import math
from collections.abc import Iterator
from typing import Any

import msgspec
from tokenizers import Tokenizer

_COMPOSING = 4
"""NFC makes text shorter: no character is as short as a quarter of what it may be composed of (Unicode, UAX 15)."""


def max_bytes_per_token(tokenizer: Tokenizer, definition: bytes) -> float:
    """UTF-8 bytes of text that one token stands for at most; infinity if text may vanish on the way to tokens.

    `definition` is the tokenizer.json. Only what is known to keep all text counts: BPE over bytes or with all bytes to
    fall back on, behind steps that neither drop nor shorten.
    """
    parts = msgspec.json.decode(definition, type=_Parts)
    added = list(tokenizer.get_added_tokens_decoder().values())
    factor = _factor(parts)
    if not factor or any(token.lstrip or token.rstrip for token in added):
        return math.inf
    names = tokenizer.get_vocab(with_added_tokens=False)
    if parts.model.get("byte_fallback"):
        is_complete = all(f"<0x{byte:02X}>" in names for byte in range(256))
        longest = max((len(name.replace("▁", " ").encode()) for name in names), default=0)
    else:
        # One character for each byte: the names of one character are those of the bytes.
        is_byte_level = any(step.get("type") == "ByteLevel" for step in _steps(parts.pre_tokenizer, "pretokenizers"))
        is_complete = is_byte_level and sum(len(name) == 1 for name in names) >= 256
        longest = max(map(len, names), default=0)
    longest = max([longest, *(len(token.content.encode()) for token in added)])
    return factor * longest if is_complete else math.inf


class _Parts(msgspec.Struct):
    model: dict[str, Any]
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None


def _factor(parts: _Parts) -> int:
    """By how much text may be shorter when it reaches the model; 0: unknown."""
    factor = 1
    for step in _steps(parts.normalizer, "normalizers"):
        if step.get("type") == "NFC":
            factor = _COMPOSING
        elif step.get("type") != "Prepend" and not _is_space_for_space(step):
            return 0
    for step in _steps(parts.pre_tokenizer, "pretokenizers"):
        is_known = step.get("type") in ("ByteLevel", "Metaspace", "Split", "Digits", "Punctuation")
        if not is_known or step.get("behavior") == "Removed":
            return 0
    return factor if parts.model.get("type") == "BPE" else 0


def _is_space_for_space(step: dict[str, Any]) -> bool:
    """SentencePiece writes spaces as a character of their own."""
    return step.get("type") == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == "▁"


def _steps(step: dict[str, Any] | None, name: str) -> Iterator[dict[str, Any]]:
    if step is None:
        return
    if step.get("type") == "Sequence":
        for inner in step[name]:
            yield from _steps(inner, name)
    else:
        yield step
