"""The sketch never undercounts, hardly overcounts and forgets; the ledger forgets what was seen longest ago."""

from collections import Counter
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from armature.offload.budget import WriteBudget
from armature.offload.ledger import NO_FACTS, UNKNOWN, Ledger
from armature.offload.sketch import FrequencySketch


def digest(number: int) -> bytes:
    return blake2b(number.to_bytes(8, "little"), digest_size=16).digest()


@given(st.lists(st.integers(0, 300), max_size=140))
def test_the_sketch_says_at_least_the_truth(numbers: list[int]) -> None:
    sketch = FrequencySketch(300)
    sketch.add([digest(number) for number in numbers])
    for number, times in Counter(numbers).items():
        assert sketch.estimate(digest(number)) >= min(times, 15)


def test_the_sketch_is_mostly_right_when_it_is_as_large_as_what_it_counts() -> None:
    sketch = FrequencySketch(1000)
    sketch.add([digest(number) for number in range(1000) for _ in range(1 + number % 3)])
    wrong = sum([sketch.estimate(digest(number)) != 1 + number % 3 for number in range(1000)])
    assert wrong < 100
    assert sum([sketch.estimate(digest(number)) > 0 for number in range(5000, 6000)]) < 200


def test_the_sketch_forgets_by_halves() -> None:
    sketch = FrequencySketch(16)
    sketch.add([digest(1)] * 12)
    assert sketch.estimate(digest(1)) == 12
    sketch.add([digest(2)] * 160)
    assert sketch.estimate(digest(1)) == 6


def test_the_ledger_remembers_what_was_seen_last() -> None:
    ledger = Ledger(2)
    for number in (1, 2, 1, 3):
        ledger.see([digest(number)], [0.5], NO_FACTS, 0.0)
    assert len(ledger) == 2
    assert ledger.get(digest(1)).uses == 2
    assert ledger.get(digest(2)) is UNKNOWN


def test_a_budget_makes_up_for_no_more_than_a_burst() -> None:
    budget = WriteBudget(10.0, 30.0)
    assert [budget.spend(10, 0.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.spend(10, 0.5)
    assert budget.spend(10, 1.0)
    assert [budget.spend(10, 1000.0) for _ in range(4)] == [True, True, True, False]
    large = WriteBudget(10.0, 30.0)
    assert large.spend(100, 0.0)
    assert not large.spend(10, 7.9)
    assert large.spend(10, 8.1)
