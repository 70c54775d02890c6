"""Two libraries, one result: whichever encodes, the tokens are those of `tokenizers`."""

import json
import logging
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from armature.openai.encoder import FastEncoder, PlainEncoder, choose_encoder
from tests.unit.openai.vocabularies import byte_level, metaspace, sentence_piece, word_piece

# How Llama 3, Qwen and their like cut words: letters, digits in groups, punctuation, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_byte_level() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return Tokenizer.from_str(tokenizer.to_str())


FAST = {"byte_level": byte_level(), "split_byte_level": split_byte_level(), "sentence_piece": sentence_piece()}
PAIRS = {
    family: (PlainEncoder(tokenizer), FastEncoder(tokenizer.to_str().encode())) for family, tokenizer in FAST.items()
}
NAMES = ["<|turn|>", "<|end|>", "<tool é>", "<s>", "</s>", "<unk>"]
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(NAMES),
        st.sampled_from([name[:-1] for name in NAMES]),
        st.text(alphabet=" \n\t\r\u00a0\u3000", max_size=8),
        st.text(alphabet="0123456789.,-", max_size=12),
        st.text(alphabet="éèñ\u0301\u0308ßİ🙂👩\u200d\ufe0f", max_size=8),
        st.sampled_from(["The quick brown fox", "def add(left, right):", "I'LL don't we've", "привет мир", "你好。"]),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("family", FAST)
@given(text=TEXTS, special=st.booleans())
@settings(max_examples=300, deadline=None)
def test_both_encoders_give_the_same_tokens(family: str, text: str, special: bool) -> None:
    plain, fast = PAIRS[family]
    assert fast.encode(text, add_special_tokens=special) == plain.encode(text, add_special_tokens=special)


@pytest.mark.parametrize("tokenizer", FAST.values(), ids=FAST)
def test_the_fast_encoder_is_chosen_where_it_is_right(tokenizer: Tokenizer) -> None:
    assert choose_encoder(tokenizer, tokenizer.to_str().encode()).name == "fastokens"


@pytest.mark.parametrize("make", [metaspace, word_piece])
def test_kinds_that_the_fast_encoder_does_not_know_go_to_the_plain_one(make: "type[Tokenizer]") -> None:
    tokenizer = make()
    encoder = choose_encoder(tokenizer, tokenizer.to_str().encode())
    assert encoder.name == "tokenizers"
    assert encoder.encode("The quick brown fox") == array("I", tokenizer.encode("The quick brown fox").ids)


def test_an_encoder_that_disagrees_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_level()
    definition = json.loads(tokenizer.to_str())
    definition["model"]["merges"] = definition["model"]["merges"][:-20]  # not what `tokenizer` goes by
    with caplog.at_level(logging.WARNING):
        encoder = choose_encoder(tokenizer, json.dumps(definition).encode())
    assert encoder.name == "tokenizers"
    assert "other tokens" in caplog.text


def test_truncation_and_padding_of_a_definition_do_not_reach_prompts() -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=100)
    assert len(FastEncoder(tokenizer.to_str().encode()).encode("The quick brown fox jumps over the lazy dog")) > 4
