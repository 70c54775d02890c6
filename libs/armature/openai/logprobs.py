"""Log probabilities in OpenAI's two shapes: chat's list of entries and the legacy parallel lists."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import msgspec

from armature.openai.assembler import Piece
from armature.openai.packed_tokens import TopTokens
from armature.openai.vocabulary import Vocabulary

_encode = msgspec.json.Encoder().encode

PART_TOKENS = 64
LONG_SCORED_TOKENS = 100
"""With 20 log probabilities each, encoding them takes 10 ms: more is done on a thread."""

_LOWEST = -9999.0
"""JSON has no infinity; this is what the OpenAI API says for tokens that can't be chosen."""


def chat_logprobs(vocabulary: Vocabulary, piece: Piece, top: int) -> dict[str, Any]:
    """`choices[].logprobs` of /v1/chat/completions; `top` likeliest tokens each."""
    return {"content": _entries(vocabulary, piece.tokens, top), "refusal": None}


def legacy_logprobs(vocabulary: Vocabulary, piece: Piece, top: int) -> dict[str, Any]:
    """`choices[].logprobs` of /v1/completions: the `top` likeliest tokens, and the chosen one if it is none of them."""
    return {
        "tokens": [vocabulary.token_text(tokens[0][0]) for tokens in piece.tokens],
        "token_logprobs": [finite(tokens[0][1]) for tokens in piece.tokens],
        "top_logprobs": [_by_name(vocabulary, tokens, top) for tokens in piece.tokens] if top else None,
        "text_offset": list(piece.offsets),
    }


def encoded_entries(vocabulary: Vocabulary, tokens: Iterable[TopTokens], top: int) -> msgspec.Raw:
    """The list that `chat_logprobs` has for these tokens, as JSON that is made of a few tokens at a time."""
    left, parts = iter(tokens), list[bytes]()
    while part := [*islice(left, PART_TOKENS)]:
        parts.append(_encode(_entries(vocabulary, part, top))[1:-1])
    return msgspec.Raw(b"[" + b",".join(parts) + b"]")


def encoded(
    shape: Callable[[Vocabulary, Piece, int], dict[str, Any]], vocabulary: Vocabulary, piece: Piece, top: int
) -> msgspec.Raw:
    """What `shape` makes of a long piece, as JSON: a few tokens at a time, since as objects one takes 8 KiB."""
    lists: dict[str, list[bytes]] = {}
    others: dict[str, Any] = {}
    tokens, begin = iter(piece.tokens), 0
    while part := [*islice(tokens, PART_TOKENS)]:
        offsets = piece.offsets[begin : begin + len(part)]
        begin += len(part)
        for name, shown in shape(vocabulary, replace(piece, tokens=part, offsets=offsets), top).items():
            if isinstance(shown, list):
                lists.setdefault(name, []).append(_encode(shown)[1:-1])
            else:
                others[name] = shown
    raw = {name: msgspec.Raw(b"[" + b",".join(parts) + b"]") for name, parts in lists.items()}
    return msgspec.Raw(_encode({**raw, **others}))


def _entries(vocabulary: Vocabulary, scored: Iterable[TopTokens], top: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for tokens in scored:
        entry = _entry(vocabulary, *tokens[0])
        entry["top_logprobs"] = [_entry(vocabulary, *token) for token in tokens[1 : 1 + top]]
        entries.append(entry)
    return entries


def _entry(vocabulary: Vocabulary, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": vocabulary.token_text(token_id),
        "logprob": finite(logprob),
        "bytes": list(vocabulary.token_bytes(token_id)),
    }


def _by_name(vocabulary: Vocabulary, tokens: TopTokens, top: int) -> dict[str, float]:
    """Names may coincide, for tokens that are parts of characters: the likelier one counts."""
    by_name: dict[str, float] = {}
    for token_id, logprob in (*tokens[1 : 1 + top], tokens[0]):
        by_name.setdefault(vocabulary.token_text(token_id), finite(logprob))
    return by_name


def finite(logprob: float) -> float:
    """What JSON can hold."""
    return logprob if logprob > _LOWEST else _LOWEST  # also for NaN
