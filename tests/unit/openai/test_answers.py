"""Answers against the types of the `openai` client, which validates them."""

import gc
import json
import tracemalloc
from typing import Any, Literal

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from armature.openai.answers import DONE, ChunkEncoder, Form, Usage, error_event, whole_answer
from armature.openai.assembler import Piece, Whole, joined
from armature.openai.errors import overloaded
from armature.openai.logprobs import PART_TOKENS, chat_logprobs, legacy_logprobs
from armature.openai.packed_tokens import PackedTokens
from armature.v1.common_pb2 import ServingInfo
from tests.unit.openai.vocabularies import vocabulary

VOCABULARY = vocabulary("byte_level")
A, B, END = (VOCABULARY.tokenizer.token_to_id(name) for name in ("a", "b", "<|end|>"))
TOPS = [[(A, -0.5), (A, -0.5), (B, -1.5)], [(END, float("-inf")), (A, float("nan")), (B, -2.0)]]
USAGE = Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=4)
NASTY = 'quote " backslash \\ newline \n tab \t emoji 🙂 nul \x00 separator \u2028 </script>'


def form(kind: Literal["chat", "completion"], top: int | None = None, **fields: Any) -> Form:
    return Form(kind=kind, request_id="r1", model='m"x', vocabulary=VOCABULARY, top_logprobs=top, **fields)


def events(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.removeprefix(b"data: ")) for event in data.split(b"\n\n") if event]


def test_a_whole_chat_answer_is_valid() -> None:
    answer = ChatCompletion.model_validate_json(
        whole_answer(form("chat"), [Piece(NASTY, finish_reason="stop")], USAGE, None), strict=True
    )
    assert answer.choices[0].message.content == NASTY
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("stop", None)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 7
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 4


def test_a_whole_completion_is_valid() -> None:
    answer = Completion.model_validate_json(
        whole_answer(form("completion"), [Piece(NASTY, finish_reason="length")], USAGE, None), strict=True
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (NASTY, "length")


def test_chat_log_probabilities_are_valid() -> None:
    piece = Piece("ab", TOPS, [0, 1], [A, END], "stop")
    answer = ChatCompletion.model_validate_json(whole_answer(form("chat", 2), [piece], USAGE, None), strict=True)
    assert answer.choices[0].logprobs is not None
    first, last = answer.choices[0].logprobs.content or []
    assert (first.token, first.bytes, first.logprob) == ("a", [97], -0.5)
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a", -0.5), ("b", -1.5)]
    assert (last.token, last.logprob) == ("<|end|>", -9999.0)
    assert [top.logprob for top in last.top_logprobs] == [-9999.0, -2.0]


def test_legacy_log_probabilities_are_valid() -> None:
    piece = Piece("ab", TOPS, [0, 1], [A, END], "stop")
    answer = Completion.model_validate_json(whole_answer(form("completion", 1), [piece], USAGE, None), strict=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "<|end|>"]
    assert logprobs.token_logprobs == [-0.5, -9999.0]
    assert logprobs.top_logprobs == [{"a": -0.5}, {"a": -9999.0, "<|end|>": -9999.0}]
    assert logprobs.text_offset == [0, 1]


def scored_pieces(tokens: int, per_piece: int = 3, likely: int = 20) -> list[Piece]:
    """An answer with more log probabilities than are encoded at once."""
    pieces: list[Piece] = []
    for begin in range(0, tokens, per_piece):
        places = range(begin, min(begin + per_piece, tokens))
        tops = [[(A if place % 3 else B, -place / 8), *((n, -n / 4) for n in range(1, likely + 1))] for place in places]
        pieces.append(Piece("x" * len(places), tops, [*places], [*places], None if places.stop < tokens else "stop"))
    return pieces


@pytest.mark.parametrize("top", [0, 20])
@pytest.mark.parametrize(("kind", "shape"), [("chat", chat_logprobs), ("completion", legacy_logprobs)])
@pytest.mark.parametrize("tokens", [1, PART_TOKENS, PART_TOKENS + 1, 500])
def test_a_long_answers_log_probabilities_are_those_of_its_pieces(
    kind: Literal["chat", "completion"], shape: Any, tokens: int, top: int
) -> None:
    whole = Whole()
    for piece in scored_pieces(tokens):
        whole.add(piece)
    answer = json.loads(whole_answer(form(kind, top), [whole.piece()], USAGE, None))
    assert answer["choices"][0]["logprobs"] == shape(VOCABULARY, joined(scored_pieces(tokens)), top)
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_an_answer_that_is_being_put_together_holds_few_bytes_for_a_log_probability() -> None:
    tokens, likely = 3000, 20
    gc.collect()
    tracemalloc.start()
    try:
        whole = Whole()
        for begin in range(0, tokens, 100):
            for piece in scored_pieces(100, 100):
                piece.offsets = piece.token_ids = range(begin, begin + 100)
                whole.add(piece)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(whole.piece().tokens) == tokens
    assert held_bytes < tokens * (likely + 1) * 12


def test_packed_tokens_are_the_sequence_that_was_packed() -> None:
    tokens = [[(7, -0.5)], [(2**32 - 1, float("-inf")), (0, -1.25), (3, -2.0)], [(1, 0.0), (2, -8.0)]]
    packed = PackedTokens()
    packed.extend(tokens)
    assert [*packed] == tokens
    assert [packed[0], packed[1], packed[-1], packed[1:]] == [tokens[0], tokens[1], tokens[-1], tokens[1:]]
    with pytest.raises(IndexError):
        packed[3]


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_chat_stream_is_valid(include_usage: bool) -> None:
    encoder = ChunkEncoder(form("chat", 1, include_usage=include_usage))
    info = ServingInfo(decode_worker="w", migrations=1)
    data = encoder.start() + encoder.piece(Piece(NASTY)) + encoder.piece(Piece("ab", TOPS, [0, 1]))
    data += encoder.finish("stop", info) + encoder.usage(USAGE)
    chunks = [ChatCompletionChunk.model_validate(event, strict=True) for event in events(data)]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[:3]] == ["", NASTY, "ab"]
    assert chunks[2].choices[0].logprobs is not None
    assert len(chunks[2].choices[0].logprobs.content or []) == 2
    assert chunks[3].choices[0].finish_reason == "stop"
    assert (chunks[3].model_extra or {})["armature"]["migrations"] == 1
    assert len({chunk.id for chunk in chunks}) == 1
    if include_usage:
        assert chunks[4].choices == []
        assert chunks[4].usage is not None and chunks[4].usage.completion_tokens == 2
        assert all(event["usage"] is None for event in events(data)[:-1])
    else:
        assert len(chunks) == 4


def test_a_completion_stream_is_valid() -> None:
    encoder = ChunkEncoder(form("completion", 1, include_usage=True))
    data = encoder.start() + encoder.piece(Piece(NASTY)) + encoder.piece(Piece("ab", TOPS, [0, 1]))
    data += encoder.finish("length", None) + encoder.usage(USAGE)
    chunks = events(data)
    for chunk in chunks[:2]:  # the client's type is that of whole answers, which always have a reason
        assert chunk["choices"][0].pop("finish_reason") is None
        chunk["choices"][0]["finish_reason"] = "stop"
    texts = [Completion.model_validate(chunk) for chunk in chunks]
    assert [text.choices[0].text for text in texts[:3]] == [NASTY, "ab", ""]
    assert texts[2].choices[0].finish_reason == "length"
    assert texts[3].usage is not None


def test_an_event_is_one_line_whatever_the_text() -> None:
    encoder = ChunkEncoder(form("chat"))
    assert encoder.piece(Piece(NASTY)).count(b"\n") == 2
    assert DONE == b"data: [DONE]\n\n"


def test_an_error_event_has_the_shape_of_errors() -> None:
    (event,) = events(error_event(overloaded("full")))
    assert event == {"error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
