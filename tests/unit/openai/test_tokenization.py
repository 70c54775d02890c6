"""Prompts to tokens, and the cache that must not be noticed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from armature.openai.errors import ApiError
from armature.openai.rules import ChatPrompt, TextPrompt
from armature.openai.tokenization import ModelTokenizer, PieceCache
from tests.unit.openai.vocabularies import FAMILIES, byte_level, sentence_piece, vocabulary

CACHES = {family: PieceCache(vocabulary(family).tokenizer) for family in FAMILIES}
PARTS = st.sampled_from(
    [
        "<|turn|>",
        "<|end|>",
        "<tool é>",
        "<s>",
        "</s>",
        "[SEP]",
        " ",
        "\n",
        "user",
        " The quick",
        "Grüße 🙂",
        "<|tu",
        "▁",
    ]
)


@pytest.mark.parametrize("family", FAMILIES)
@given(parts=st.lists(PARTS, max_size=10))
@settings(max_examples=150, deadline=None)
def test_pieces_have_the_tokens_of_the_whole(family: str, parts: list[str]) -> None:
    text = "".join(parts)
    whole = vocabulary(family).tokenizer.encode(text, add_special_tokens=False).ids
    assert list(CACHES[family].encode(text)) == whole
    assert list(CACHES[family].encode(text)) == whole  # from the cache


def test_tokens_that_look_around_themselves_turn_the_cache_off() -> None:
    tokenizer = sentence_piece()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    text = "The quick <mask> brown</s> fox"
    assert list(PieceCache(tokenizer).encode(text)) == tokenizer.encode(text, add_special_tokens=False).ids


def test_the_cache_forgets_when_it_is_full() -> None:
    tokenizer = byte_level()
    cache = PieceCache(tokenizer, max_bytes=2000)
    for number in range(100):
        text = f"<|turn|>message {number}"
        assert list(cache.encode(text)) == tokenizer.encode(text, add_special_tokens=False).ids
    assert cache.size_bytes <= 2000


def test_a_directory_without_template_answers_completions_only(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = ModelTokenizer.load(tmp_path)
    prompt = TextPrompt("The quick")
    assert tokenizer.text_of("m", prompt) == "The quick"
    assert tokenizer.vocabulary.tokenizer.decode(list(tokenizer.encode(prompt, "The quick"))) == "The quick"
    with pytest.raises(ApiError) as caught:
        tokenizer.text_of("m", ChatPrompt([{"role": "user", "content": "hi"}]))
    assert caught.value.code == "unsupported_parameter"


def test_a_broken_tokenizer_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"tokenizer\.json"):
        ModelTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        ModelTokenizer.load(tmp_path)
