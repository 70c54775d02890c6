"""Text in whole characters, however the tokens come."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.openai.detokenizer import detokenizer
from armature.openai.vocabulary import Vocabulary
from tests.unit.openai.vocabularies import CORPUS, FAMILIES, vocabulary

TEXTS = st.one_of(
    st.sampled_from(CORPUS),
    st.text(max_size=40),
    st.text(alphabet="aé🙂👩‍👧漢 \u0301\n<|end|>", max_size=40),
)
CUTS = st.lists(st.integers(0, 200), max_size=12)


def pieces(token_ids: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(cut % (len(token_ids) + 1) for cut in cuts), len(token_ids)]
    return [token_ids[start:end] for start, end in pairwise(edges)]


def text_of(family: str, batches: list[list[int]], prompt: list[int]) -> str:
    stream = detokenizer(vocabulary(family), prompt)
    return "".join([*(stream.feed(batch) for batch in batches), stream.finish()])


@pytest.mark.parametrize("family", FAMILIES)
@given(text=TEXTS, cuts=CUTS)
@settings(max_examples=60, deadline=None)
def test_any_split_of_the_tokens_gives_the_same_text(family: str, text: str, cuts: list[int]) -> None:
    token_ids = vocabulary(family).tokenizer.encode(text, add_special_tokens=False).ids
    one_by_one = [[token_id] for token_id in token_ids]
    assert text_of(family, pieces(token_ids, cuts), []) == text_of(family, one_by_one, [])


@pytest.mark.parametrize("family", FAMILIES)
@given(text=TEXTS, prompt=st.sampled_from(CORPUS))
@settings(max_examples=60, deadline=None)
def test_prompt_and_answer_together_are_their_whole_decode(family: str, text: str, prompt: str) -> None:
    tokenizer = vocabulary(family).tokenizer
    before = tokenizer.encode(prompt, add_special_tokens=False).ids
    after = tokenizer.encode(text, add_special_tokens=False).ids
    answer = text_of(family, [[token_id] for token_id in after], before)
    assert tokenizer.decode(before) + answer == tokenizer.decode(before + after)


@given(token_ids=st.lists(st.integers(0, 420), max_size=20), cuts=CUTS)
@settings(max_examples=150, deadline=None)
def test_random_byte_level_tokens_are_their_whole_decode(token_ids: list[int], cuts: list[int]) -> None:
    """Broken characters too: both sides replace the same bytes."""
    tokenizer = vocabulary("byte_level").tokenizer
    assert text_of("byte_level", pieces(token_ids, cuts), []) == tokenizer.decode(token_ids)


@given(token_ids=st.lists(st.integers(0, 419), max_size=20), cuts=CUTS)
@settings(max_examples=150, deadline=None)
def test_random_byte_fallback_tokens_depend_on_no_split(token_ids: list[int], cuts: list[int]) -> None:
    """The tokenizer's own decoder gives up a whole run of bytes for one broken character, which no stream can."""
    whole = b"".join(map(vocabulary("sentence_piece").visible, token_ids)).decode("utf-8", "replace")
    assert text_of("sentence_piece", pieces(token_ids, cuts), []) == whole


def test_a_character_comes_with_its_last_token() -> None:
    token_ids = vocabulary("sentence_piece").tokenizer.encode("x🛸", add_special_tokens=False).ids
    stream = detokenizer(vocabulary("sentence_piece"))
    fed = [stream.feed([token_id]) for token_id in token_ids]
    assert fed[-5:] == ["x", "", "", "", "🛸"]


def test_a_character_that_stays_incomplete_is_replaced_at_the_end() -> None:
    *begun, _ = vocabulary("sentence_piece").tokenizer.encode("🛸", add_special_tokens=False).ids
    stream = detokenizer(vocabulary("sentence_piece"))
    assert stream.feed(begun).strip() == ""
    assert stream.finish() == "\ufffd"


def test_special_and_unknown_tokens_add_nothing() -> None:
    known = vocabulary("byte_level")
    stream = detokenizer(known)
    a, end, tool = (known.tokenizer.token_to_id(name) for name in ("a", "<|end|>", "<tool é>"))
    assert stream.feed([end, a, 999_999, tool, end, a]) == "a<tool é>a"


def test_the_leading_space_of_a_continuation_is_kept() -> None:
    tokenizer = vocabulary("sentence_piece").tokenizer
    prompt = tokenizer.encode("The quick", add_special_tokens=False).ids
    assert text_of("sentence_piece", [tokenizer.encode("brown", add_special_tokens=False).ids], prompt) == " brown"


@pytest.mark.parametrize(("family", "names"), [("byte_level", ["<|end|>"]), ("sentence_piece", ["</s>"])])
def test_special_tokens_that_a_parser_looks_for_show_and_others_do_not(family: str, names: list[str]) -> None:
    words = vocabulary(family)
    inner = words.tokenizer.encode("a b", add_special_tokens=False).ids
    shown = words.tokenizer.token_to_id(names[0])
    hidden = next(token_id for token_id in words.special_ids if token_id != shown)
    stream = detokenizer(words, shown=frozenset([*names, "<no such token>"]))
    assert stream.feed([shown, hidden, *inner, shown]) == names[0] + detokenizer(words).feed(inner) + names[0]
    assert detokenizer(words).feed([shown]) == ""


def test_decoders_that_look_at_neighbours_show_them_too() -> None:
    words = vocabulary("word_piece")
    special = next(iter(sorted(words.special_ids)))
    name = words.tokenizer.id_to_token(special)
    inner = words.tokenizer.encode("quick", add_special_tokens=False).ids
    stream = detokenizer(words, shown=frozenset([name]))
    assert stream.feed([special, *inner]) + stream.finish() == f"{name} quick"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_learnt_ahead_are_what_they_would_be_when_met(family: str) -> None:
    met, tokenizer = vocabulary(family), vocabulary(family).tokenizer
    learnt = Vocabulary(tokenizer, tokenizer.to_str().encode())
    learnt.learn(tokenizer.get_vocab())
    if met.is_concatenative:
        ids = range(tokenizer.get_vocab_size() + 2)
        assert [learnt.visible(token_id) for token_id in ids] == [met.visible(token_id) for token_id in ids]
