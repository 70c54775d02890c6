"""How likely the tokens of a prompt were, in the two shapes in which clients ask for it.

Completions that repeat their prompt (`echo`) have its log probabilities in front of the answer's; `prompt_logprobs` is
vLLM's, a dictionary by token id for each token of the prompt. Of the first token nothing is known: null.
"""

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from armature.openai.assembler import Piece
from armature.openai.errors import invalid
from armature.openai.logprobs import finite, legacy_logprobs
from armature.openai.packed_tokens import TopTokens
from armature.openai.vocabulary import Vocabulary
from armature.v1.common_pb2 import PromptLogprobs

MAX_SCORES = 1 << 18
"""Log probabilities of one prompt: some 10 MB of JSON."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that stands before its answers."""

    text: str
    logprobs: dict[str, Any] | None = None
    """The legacy shape's; None: they were not asked for."""


def check_scores(field: str, prompt_tokens: int, top: int) -> None:
    """Raise 400 if there would be more than anybody can read."""
    if prompt_tokens * (top + 1) > MAX_SCORES:
        most = MAX_SCORES // (top + 1)
        fix = f"with {top} likeliest tokens in each place a prompt has at most {most} tokens here, not {prompt_tokens}"
        raise invalid(field, fix)


def is_complete(told: PromptLogprobs, prompt_tokens: int) -> bool:
    """Whether a worker has told of every token but the first."""
    rows, width = 4 * (prompt_tokens - 1), told.top + 1
    return len(told.ranks) == rows and len(told.token_ids) == len(told.logprobs) == rows * width


def echoed(vocabulary: Vocabulary, text: str, prompt: Sequence[int], told: PromptLogprobs) -> Echo:
    """The prompt with the log probabilities of its tokens, as legacy completions have them."""
    tokens: list[TopTokens] = [[(prompt[0], 0.0)], *[row for row, _ in _rows(told)]]
    logprobs = legacy_logprobs(vocabulary, Piece(text, tokens, _offsets(vocabulary, text, prompt)), told.top)
    logprobs["token_logprobs"][0] = None
    if logprobs["top_logprobs"] is not None:
        logprobs["top_logprobs"][0] = None
    return Echo(text, logprobs)


def prompt_logprobs(vocabulary: Vocabulary, told: PromptLogprobs) -> list[dict[str, Any] | None]:
    """vLLM's shape."""
    shown: list[dict[str, Any] | None] = [None]
    for (own, *likeliest), rank in _rows(told):
        entries = {own[0]: (own[1], rank)}
        for place, (token_id, logprob) in enumerate(likeliest, 1):
            entries.setdefault(token_id, (logprob, place))
        shown.append(
            {
                str(token_id): {
                    "logprob": finite(logprob),
                    "rank": rank,
                    "decoded_token": vocabulary.token_text(token_id),
                }
                for token_id, (logprob, rank) in entries.items()
            }
        )
    return shown


def _offsets(vocabulary: Vocabulary, text: str, prompt: Sequence[int]) -> list[int]:
    """Where in the text each token begins; a character that spans tokens begins with the first of them."""
    offsets: list[int] = []
    characters = 0
    for token_id in prompt:
        offsets.append(min(characters, len(text)))
        if token_id not in vocabulary.special_ids:
            characters += sum(byte & 0xC0 != 0x80 for byte in vocabulary.token_bytes(token_id))
        elif text.startswith(name := vocabulary.token_text(token_id), characters):  # the tokenizer's own are in no text
            characters += len(name)
    return offsets


def _rows(told: PromptLogprobs) -> Iterator[tuple[TopTokens, int]]:
    """By token: itself and the likeliest ones with their log probabilities, and its rank."""
    width = told.top + 1
    token_ids, logprobs, ranks = array("I", told.token_ids), array("f", told.logprobs), array("I", told.ranks)
    if sys.byteorder == "big":
        for values in (token_ids, logprobs, ranks):
            values.byteswap()
    for row, rank in enumerate(ranks):
        here = slice(row * width, (row + 1) * width)
        yield list(zip(token_ids[here], logprobs[here], strict=True)), rank
