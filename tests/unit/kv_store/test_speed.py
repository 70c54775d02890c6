"""Times and sizes of transfers tell what a byte takes, and what each transfer takes besides."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.kv_store.speed import Speed

MIB = 1 << 20


def test_latency_and_rate_are_told_apart_when_sizes_differ() -> None:
    speed, rng = Speed(), random.Random(1)
    for _ in range(200):
        size_bytes = rng.randint(1, 16) * MIB
        speed.measured(size_bytes, (0.004 + size_bytes / 1e9) * rng.uniform(0.95, 1.05))
    assert speed.latency_s == pytest.approx(0.004, rel=0.3)
    assert speed.bytes_per_s == pytest.approx(1e9, rel=0.2)


def test_transfers_of_one_size_have_a_rate_and_no_latency() -> None:
    speed = Speed()
    for taken_s in (0.009, 0.011, 0.010, 0.010):
        speed.measured(10 * MIB, taken_s)
    assert speed.bytes_per_s == pytest.approx(1e9, rel=0.1)
    assert speed.latency_s == pytest.approx(0.0, abs=1e-9)


def test_a_tier_that_has_become_slower_is_known_to_be_after_a_few_transfers() -> None:
    speed = Speed()
    for size_bytes in (4 * MIB, 16 * MIB) * 10:
        speed.measured(size_bytes, size_bytes / 1e9)
    for size_bytes in (4 * MIB, 16 * MIB) * 10:
        speed.measured(size_bytes, size_bytes / 1e8)
    assert speed.latency_s + 16 * MIB / speed.bytes_per_s == pytest.approx(16 * MIB / 1e8, rel=0.2)


@given(st.lists(st.tuples(st.integers(1, 1 << 30), st.floats(0, 100)), min_size=1, max_size=30))
def test_whatever_is_measured_times_are_positive_and_finite(transfers: list[tuple[int, float]]) -> None:
    speed = Speed()
    for size_bytes, taken_s in transfers:
        speed.measured(size_bytes, taken_s)
        assert 0 < speed.bytes_per_s < float("inf")
        assert 0 <= speed.latency_s < 1000
