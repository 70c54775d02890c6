"""What is told of a prompt's tokens."""

import math
from array import array

import pytest

from armature.openai.errors import ApiError
from armature.openai.prompt_scores import MAX_SCORES, check_scores, echoed, is_complete, prompt_logprobs
from armature.v1.common_pb2 import PromptLogprobs
from tests.unit.openai.vocabularies import vocabulary as vocabulary_of

TEXT = "Grüße 🙂!"


def told(prompt: list[int], top: int = 1) -> PromptLogprobs:
    rows = [(token_id, *(token_id + place for place in range(1, top + 1))) for token_id in prompt[1:]]
    return PromptLogprobs(
        top=top,
        token_ids=array("I", [token_id for row in rows for token_id in row]).tobytes(),
        logprobs=array("f", [-0.5 * place for row in rows for place, _ in enumerate(row)]).tobytes(),
        ranks=array("I", range(1, len(rows) + 1)).tobytes(),
    )


@pytest.mark.parametrize("text", [TEXT, "<|turn|>" + TEXT, TEXT + "<|end|>" + TEXT])
def test_tokens_begin_where_their_characters_do(text: str) -> None:
    vocabulary = vocabulary_of("byte_level")
    prompt = vocabulary.tokenizer.encode(text).ids
    echo = echoed(vocabulary, text, prompt, told(prompt, top=0))
    assert echo.logprobs is not None and echo.text == text
    offsets = [*echo.logprobs["text_offset"], len(text)]
    assert offsets == sorted(offsets)
    for token, begin, end in zip(echo.logprobs["tokens"], offsets, offsets[1:], strict=False):
        assert "\ufffd" in token or text[begin:end] == token
    assert echo.logprobs["token_logprobs"] == [None, *[0.0] * (len(prompt) - 1)]
    assert echo.logprobs["top_logprobs"] is None


def test_a_token_that_the_tokenizer_puts_in_front_is_in_no_text() -> None:
    vocabulary = vocabulary_of("byte_level")
    turn = vocabulary.tokenizer.token_to_id("<|turn|>")
    prompt = [turn, *vocabulary.tokenizer.encode("fox").ids]
    echo = echoed(vocabulary, "fox", prompt, told(prompt))
    assert echo.logprobs is not None
    assert echo.logprobs["text_offset"][:2] == [0, 0] and echo.logprobs["text_offset"][-1] < 3
    assert echo.logprobs["top_logprobs"][0] is None and all(echo.logprobs["top_logprobs"][1:])


def test_the_own_token_counts_once_among_the_likeliest() -> None:
    vocabulary = vocabulary_of("byte_level")
    row = PromptLogprobs(
        top=2,
        token_ids=array("I", [8, 7, 8]).tobytes(),
        logprobs=array("f", [-2.0, -1.0, -2.0]).tobytes(),
        ranks=array("I", [2]).tobytes(),
    )
    first, second = prompt_logprobs(vocabulary, row)
    assert first is None and second is not None
    assert {key: (entry["logprob"], entry["rank"]) for key, entry in second.items()} == {"8": (-2.0, 2), "7": (-1.0, 1)}


def test_what_json_can_not_hold_is_very_unlikely() -> None:
    vocabulary = vocabulary_of("byte_level")
    row = told([1, 2], top=0)
    row.logprobs = array("f", [-math.inf]).tobytes()
    shown = prompt_logprobs(vocabulary, row)[1]
    assert shown is not None and shown["2"]["logprob"] == -9999.0


def test_parts_are_not_taken_for_the_whole() -> None:
    whole = told([1, 2, 3])
    assert is_complete(whole, 3) and not is_complete(whole, 4) and not is_complete(PromptLogprobs(), 2)
    assert is_complete(PromptLogprobs(), 1)
    check_scores("prompt", MAX_SCORES // 2, 1)
    with pytest.raises(ApiError, match="at most"):
        check_scores("prompt", MAX_SCORES // 2 + 1, 1)
