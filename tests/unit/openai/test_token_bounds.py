"""What a token can stand for is an upper bound, or infinity: no prompt that fits is refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.openai.token_bounds import max_bytes_per_token
from tests.unit.openai.vocabularies import FAMILIES


def bound(tokenizer: Tokenizer) -> float:
    return max_bytes_per_token(tokenizer, tokenizer.to_str().encode())


def composing() -> Tokenizer:
    tokenizer = FAMILIES["byte_level"]()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


BOUNDED = {name: FAMILIES[name]() for name in ("byte_level", "sentence_piece")} | {"composing": composing()}
PIECES = ["The quick ", "\u03b9\u0308\u0301", "가", "<|end|>", "<tool é>", "  " * 20, "\x00", "👩‍👩‍👧", "é", "e\u0301"]


@pytest.mark.parametrize("name", BOUNDED)
@given(text=st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_text_has_fewer_tokens_than_its_bytes_say(name: str, text: str) -> None:
    tokenizer = BOUNDED[name]
    tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    assert tokens >= len(text.encode()) / bound(tokenizer)


def test_the_bound_is_the_longest_token() -> None:
    tokenizer = BOUNDED["byte_level"]
    longest = max(len(name) for name in tokenizer.get_vocab())
    assert bound(tokenizer) == longest
    assert bound(BOUNDED["composing"]) == 4 * longest


def test_the_demo_model_has_a_bound() -> None:
    definition = (DEMO_MODEL_PATH / "tokenizer.json").read_bytes()
    assert max_bytes_per_token(Tokenizer.from_buffer(definition), definition) < 200


@pytest.mark.parametrize("name", ["metaspace", "word_piece"])
def test_tokenizers_that_may_swallow_text_have_none(name: str) -> None:
    assert bound(FAMILIES[name]()) == math.inf


def changed(**parts: Any) -> Tokenizer:
    definition = json.loads(FAMILIES["byte_level"]().to_str())
    return Tokenizer.from_str(json.dumps(definition | parts))


def test_any_step_that_drops_text_takes_the_bound_away() -> None:
    removing = FAMILIES["byte_level"]()
    removing.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    stripping = FAMILIES["byte_level"]()
    stripping.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    swallowing = FAMILIES["byte_level"]()
    swallowing.add_tokens([AddedToken("<x>", lstrip=True)])
    plain = changed(pre_tokenizer=None)
    assert [bound(one) for one in (removing, stripping, swallowing, plain)] == [math.inf] * 4
