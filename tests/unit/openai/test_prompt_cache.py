"""Chats to tokens and digests through a cache that must not be noticed."""

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from armature.blocks.hashing import BlockHasher
from armature.openai.encoder import Encoder, PlainEncoder
from armature.openai.prompt_cache import MIN_PIECE_CHARACTERS, PromptCache
from armature.openai.tokenization import cut_pattern
from tests.unit.openai.vocabularies import FAMILIES, byte_level, sentence_piece

HASHER = BlockHasher(b"secret", 8)
ROOT, OTHER_ROOT = HASHER.root("m"), HASHER.root("m", "another tenant")
LONG = "The quick brown fox jumps over it. " * 20
PARTS = st.sampled_from(
    ["<|turn|>", "<|end|>", "<tool é>", "<s>", "</s>", "[SEP]", " ", "user", "Grüße 🙂", "<|tu", LONG]
)
TOKENIZERS = {family: make() for family, make in FAMILIES.items()}


class CountingEncoder:
    """Notes what it was asked to encode."""

    name = "counting"

    def __init__(self, inner: Encoder) -> None:
        self._inner = inner
        self.texts: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool = False) -> "array[int]":
        self.texts.append(text)
        return self._inner.encode(text, add_special_tokens=add_special_tokens)

    def taken(self) -> int:
        """Characters that were encoded since the last time."""
        count = sum(map(len, self.texts))
        self.texts.clear()
        return count


def cache_of(tokenizer: Tokenizer, max_bytes: int = 1 << 20) -> tuple[PromptCache, CountingEncoder]:
    encoder = CountingEncoder(PlainEncoder(tokenizer))
    return PromptCache(encoder, HASHER, cut_pattern(tokenizer), max_bytes), encoder


def turn(number: int, words: str = LONG) -> str:
    return f"<|turn|>user {number}\n{words}<|end|>"


CACHES = {family: cache_of(tokenizer)[0] for family, tokenizer in TOKENIZERS.items()}
"""Kept from one example to the next: they are to be full of others' pieces."""


@pytest.mark.parametrize("family", FAMILIES)
@given(parts=st.lists(PARTS, max_size=12))
@settings(max_examples=150, deadline=None)
def test_tokens_and_digests_are_those_of_the_whole(family: str, parts: list[str]) -> None:
    text = "".join(parts)
    whole = array("I", TOKENIZERS[family].encode(text, add_special_tokens=False).ids)
    for root in (ROOT, OTHER_ROOT, ROOT):
        assert CACHES[family].encode(root, text) == (whole, HASHER.extend(root, whole))


def test_a_grown_conversation_is_encoded_from_where_it_grew() -> None:
    cache, encoder = cache_of(byte_level())
    conversation = "".join(turn(number) for number in range(10))
    cache.encode(ROOT, conversation)
    encoder.taken()
    cache.encode(ROOT, conversation + turn(10))
    assert encoder.taken() <= 2 * len(turn(10))


def test_tenants_share_nothing() -> None:
    cache, encoder = cache_of(byte_level())
    text = turn(0) + turn(1)
    cache.encode(ROOT, text)
    cost = encoder.taken()
    cache.encode(OTHER_ROOT, text)
    assert encoder.taken() == cost
    cache.encode(ROOT, text)
    assert encoder.taken() < cost


def test_the_least_recently_used_goes_first_and_all_of_it_can() -> None:
    cache, encoder = cache_of(byte_level(), max_bytes=12_000)
    kept = turn(0, "kept " + LONG)
    for number in range(1, 100):
        cache.encode(ROOT if number % 2 else OTHER_ROOT, turn(number) + turn(number))
        cache.encode(ROOT, kept + "<|turn|>")
        assert cache.size_bytes <= 12_000
    encoder.taken()
    cache.encode(ROOT, kept + "<|turn|>")
    assert encoder.taken() < len(kept)
    cache.encode(ROOT, turn(100, LONG * 40) + "<|turn|>")  # larger than the cache
    assert cache.size_bytes <= 12_000


def test_short_chats_are_not_kept() -> None:
    cache, _ = cache_of(byte_level())
    cache.encode(ROOT, turn(0, "x" * (MIN_PIECE_CHARACTERS // 2)))
    assert cache.size_bytes == 0


def test_tokens_that_look_around_themselves_turn_the_cache_off() -> None:
    tokenizer = sentence_piece()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    cache, _ = cache_of(tokenizer)
    text = f"{LONG} <mask> brown</s> fox{LONG}</s>"
    assert list(cache.encode(ROOT, text)[0]) == tokenizer.encode(text, add_special_tokens=False).ids
    assert cache.size_bytes == 0
