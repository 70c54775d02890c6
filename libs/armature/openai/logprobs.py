"""Log probabilities in OpenAI's two shapes: chat's list of entries and the legacy parallel lists."""

from typing import Any

from armature.openai.assembler import Piece, TopTokens
from armature.openai.vocabulary import Vocabulary

_LOWEST = -9999.0
"""JSON has no infinity; this is what the OpenAI API says for tokens that can't be chosen."""


def chat_logprobs(vocabulary: Vocabulary, piece: Piece, top: int) -> dict[str, Any]:
    """`choices[].logprobs` of /v1/chat/completions; `top` likeliest tokens each."""
    entries: list[dict[str, Any]] = []
    for tokens in piece.tokens:
        entry = _entry(vocabulary, *tokens[0])
        entry["top_logprobs"] = [_entry(vocabulary, *token) for token in tokens[1 : 1 + top]]
        entries.append(entry)
    return {"content": entries, "refusal": None}


def legacy_logprobs(vocabulary: Vocabulary, piece: Piece, top: int) -> dict[str, Any]:
    """`choices[].logprobs` of /v1/completions: the `top` likeliest tokens, and the chosen one if it is none of them."""
    return {
        "tokens": [vocabulary.token_text(tokens[0][0]) for tokens in piece.tokens],
        "token_logprobs": [finite(tokens[0][1]) for tokens in piece.tokens],
        "top_logprobs": [_by_name(vocabulary, tokens, top) for tokens in piece.tokens] if top else None,
        "text_offset": list(piece.offsets),
    }


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
