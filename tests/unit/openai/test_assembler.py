"""Tokens to pieces: stop strings, end tokens, log probabilities and counts do not depend on batches."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.openai.assembler import LENGTH, STOP, Assembler, Piece, joined
from armature.openai.parsers.events import Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.openai.parsers.families import AnswerFormat
from tests.unit.openai.vocabularies import vocabulary

VOCABULARY = vocabulary("byte_level")
TEXT = "The quick brown fox 🙂🚀 jumps, 你好"
TOKENS = VOCABULARY.tokenizer.encode(TEXT, add_special_tokens=False).ids
END = VOCABULARY.tokenizer.token_to_id("<|end|>")


def assemble(
    assembler: Assembler, token_ids: Sequence[int], cuts: Sequence[int], reason: str, *, logprobs: bool = False
) -> Piece:
    """All pieces as one, as a whole answer has them."""
    edges = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    whole = Piece("", [], [], [])
    for start, end in pairwise(edges):
        batch = token_ids[start:end]
        tops = [[(token_id, -1.0)] for token_id in batch] if logprobs else []
        piece = assembler.feed(batch, tops, reason if end == len(token_ids) and start == edges[-2] else None)
        whole.text += piece.text
        whole.tokens = [*whole.tokens, *piece.tokens]
        whole.offsets = [*whole.offsets, *piece.offsets]
        whole.token_ids = [*whole.token_ids, *piece.token_ids]
        whole.finish_reason = piece.finish_reason
        if piece.finish_reason:
            return whole
    return whole


@given(
    st.lists(st.integers(0, len(TOKENS)), max_size=8),
    st.lists(st.sampled_from(["fox", "🙂", "🚀 j", "你好", "zzz", "o", "x "]), max_size=3),
    st.booleans(),
    st.sampled_from([STOP, LENGTH]),
)
@settings(max_examples=200, deadline=None)
def test_text_reason_and_count_do_not_depend_on_batches(
    cuts: list[int], stops: list[str], logprobs: bool, reason: str
) -> None:
    at_once, in_batches = Assembler(VOCABULARY, stop=stops), Assembler(VOCABULARY, stop=stops)
    whole = assemble(at_once, TOKENS, [], reason, logprobs=logprobs)
    parts = assemble(in_batches, TOKENS, cuts, reason, logprobs=logprobs)
    assert parts == whole
    assert in_batches.completion_tokens == at_once.completion_tokens


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_the_end_token_counts_and_does_not_show(stop: tuple[str, ...]) -> None:
    visible = VOCABULARY.tokenizer.token_to_id("a")
    assembler = Assembler(VOCABULARY, stop=stop, end_ids=frozenset({visible}))
    piece = assembler.feed([*TOKENS, visible], (), STOP)
    assert (piece.text, piece.finish_reason) == (TEXT, STOP)
    assert assembler.completion_tokens == len(TOKENS) + 1


def test_an_end_token_in_mid_answer_shows() -> None:
    """`min_tokens` may let the model go on behind it."""
    visible = VOCABULARY.tokenizer.token_to_id("a")
    assembler = Assembler(VOCABULARY, end_ids=frozenset({visible}))
    assert assembler.feed([visible, *TOKENS, visible], (), LENGTH).text == f"a{TEXT}a"


def test_a_stop_string_counts_the_tokens_that_complete_it_and_no_more() -> None:
    assembler = Assembler(VOCABULARY, stop=("fox",))
    piece = assembler.feed(TOKENS, (), LENGTH)
    assert (piece.text, piece.finish_reason) == ("The quick brown ", STOP)
    needed = next(n for n in range(len(TOKENS)) if "fox" in VOCABULARY.tokenizer.decode(TOKENS[:n]))
    assert assembler.completion_tokens == needed == len(piece.token_ids)


def test_text_held_back_is_sent_when_the_answer_ends_without_the_stop_string() -> None:
    assembler = Assembler(VOCABULARY, stop=("你好!",))
    assert assemble(assembler, TOKENS, list(range(len(TOKENS))), LENGTH).text == TEXT


def test_log_probabilities_come_with_the_text_of_their_tokens() -> None:
    assembler = Assembler(VOCABULARY, stop=(" jumps, ",))
    sent, shown = "", 0
    for token_id in TOKENS:
        piece = assembler.feed([token_id], [[(token_id, -0.5)]])
        sent += piece.text
        for offset, top in zip(piece.offsets, piece.tokens, strict=True):
            assert top[0][0] == TOKENS[shown]
            assert offset < len(sent)
            shown += 1
        if piece.finish_reason:
            break
    assert sent == "The quick brown fox 🙂🚀"
    assert VOCABULARY.tokenizer.decode(TOKENS[:shown]) == sent


THOUGHT = "<think>\nHm 🙂\n</think>\n\nSo: a < b <tool_call>\n" + '{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'


@given(cuts=st.lists(st.integers(1, 200), max_size=8), has_logprobs=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_an_answer_says_does_not_depend_on_batches(cuts: list[int], has_logprobs: bool) -> None:
    words = vocabulary("byte_level")
    token_ids = words.tokenizer.encode(THOUGHT, add_special_tokens=False).ids
    reading = AnswerFormat("hermes", "think").reading({"f": {}}, "prompt")
    assembler = Assembler(words, reading=reading)
    edges = [0, *sorted({cut % len(token_ids) for cut in cuts} - {0}), len(token_ids)]
    pieces: list[Piece] = []
    for start, end in pairwise(edges):
        logprobs = [[(token_id, -1.0)] for token_id in token_ids[start:end]] if has_logprobs else []
        pieces.append(assembler.feed(token_ids[start:end], logprobs, STOP if end == len(token_ids) else None))
    whole = joined(pieces)
    assert whole.finish_reason == "tool_calls"
    assert len(whole.tokens) == (len(token_ids) if has_logprobs else 0)
    reasoning, content, call, arguments = whole.said
    assert (reasoning, content, arguments) == (
        Reasoning("Hm 🙂"),
        Content("So: a < b"),
        ToolCallArguments(0, '{"a": "é"}'),
    )
    assert isinstance(call, ToolCallStart) and call.name == "f" and call.call_id is not None
    thought = words.tokenizer.encode("<think>\nHm 🙂", add_special_tokens=False).ids
    assert assembler.reasoning_tokens == len(thought)


def test_the_end_tokens_log_probability_is_reported() -> None:
    assembler = Assembler(VOCABULARY, end_ids=frozenset({END}))
    token_ids = [*TOKENS, END]
    piece = assemble(assembler, token_ids, [3, 5], STOP, logprobs=True)
    assert [top[0][0] for top in piece.tokens] == token_ids
    assert piece.text == TEXT
