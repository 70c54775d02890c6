"""Copies of a trace at once."""

import random
from collections import Counter

import pytest

from armature.sim.superposition import superposed
from armature.sim.trace import FIRST_ANSWER, Trace, TraceRequest

TRACE = Trace(
    [
        TraceRequest(0.0, 700, 3, [0, 1], session_id="a"),
        TraceRequest(10.0, 700, 4, [0, 2], session_id="a"),
        TraceRequest(90.0, 300, 5, [7]),
    ],
    512,
)


def arrivals(trace: Trace) -> list[float]:
    return [one.arrival_s for one in trace.requests]


def test_every_copy_has_all_requests_and_shares_nothing_with_others() -> None:
    merged = superposed(TRACE, 4, random.Random(1))
    assert arrivals(merged) == sorted(arrivals(merged))
    assert Counter(one.output_tokens for one in merged.requests) == {3: 4, 4: 4, 5: 4}
    by_first = Counter(one.contents[0] for one in merged.requests)
    assert sorted(by_first.values()) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert len({content for one in merged.requests for content in one.contents}) == 4 * 4
    assert len({one.session_id for one in merged.requests}) == 1 + 4
    for one in merged.requests:
        one.check(merged.block_size)


def test_gaps_within_a_copy_stay_on_the_circle() -> None:
    merged = superposed(TRACE, 3, random.Random(2))
    span_s = 90.0 * 4 / 3
    copies: dict[int, list[float]] = {}
    for one in merged.requests:
        copies.setdefault(one.contents[0] // 8, []).append(one.arrival_s)
    for times in copies.values():
        ordered = sorted(times)
        gaps = [(after - before) % span_s for before, after in zip(ordered, [*ordered[1:], ordered[0]], strict=True)]
        assert sorted(gaps) == pytest.approx([10.0, 30.0, 80.0])


def test_a_seed_says_how_copies_are_shifted_and_a_spread_bounds_it() -> None:
    assert superposed(TRACE, 5, random.Random(3)) == superposed(TRACE, 5, random.Random(3))
    assert arrivals(superposed(TRACE, 5, random.Random(3))) != arrivals(superposed(TRACE, 5, random.Random(4)))
    assert arrivals(superposed(TRACE, 2, random.Random(3), 0.0)) == [0.0, 0.0, 10.0, 10.0, 90.0, 90.0]
    near = arrivals(superposed(TRACE, 50, random.Random(3), 5.0))
    assert all(min(abs(at_s - whence_s) for whence_s in (0, 10, 90, 120)) <= 5 for at_s in near)


def test_one_copy_is_the_trace_and_what_makes_no_sense_is_refused() -> None:
    assert superposed(TRACE, 1, random.Random(0)) is TRACE
    with pytest.raises(ValueError, match="copies is 0"):
        superposed(TRACE, 0, random.Random(0))
    with pytest.raises(ValueError, match="spread of copies is -1"):
        superposed(TRACE, 2, random.Random(0), -1.0)
    with pytest.raises(ValueError, match="at most 268435456 have contents apart"):
        superposed(TRACE, FIRST_ANSWER // 8 + 1, random.Random(0))
