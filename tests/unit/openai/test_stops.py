"""Stop strings, wherever tokens end."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.openai.stops import StopStrings

ALPHABET = "abc🙂"


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first stop string to be complete, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(
    st.text(ALPHABET, max_size=30),
    st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(0, 30), max_size=10),
)
@settings(max_examples=400, deadline=None)
def test_any_split_ends_where_the_first_complete_stop_string_begins(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher = StopStrings(stops)
    sent = ""
    for start, end in pairwise(edges):
        sent += matcher.feed(text[start:end])
        expected = oracle(text[:end], stops)
        assert expected[0].startswith(sent)  # nothing sent has to be taken back
    hit = matcher.is_hit
    assert (sent + matcher.finish(), hit) == oracle(text, stops)


@pytest.mark.parametrize(
    ("fed", "sent"),
    [
        (["abc"], "abc"),
        (["ab", "\n"], "ab"),
        (["ab", "\n", "x"], "ab\nx"),
        (["ab", "\n", "\n", "x"], "ab"),
    ],
)
def test_a_possible_beginning_is_held_back(fed: list[str], sent: str) -> None:
    matcher = StopStrings(["\n\n"])
    assert "".join(map(matcher.feed, fed)) == sent


def test_nothing_follows_a_stop_string() -> None:
    matcher = StopStrings(["."])
    assert matcher.feed("one. two. three") == "one"
    assert matcher.is_hit
    assert (matcher.feed(" four."), matcher.finish()) == ("", "")
