"""Points of traffic from what a gateway has counted."""

import pytest

from armature.console.traffic import INTERVAL_S, KEPT_POINTS, QUANTILE_POINTS, Counts, Traffic

EDGES = (1.0, 2.0, 4.0)


def counts(number: int, ttft: tuple[int, ...] = (0, 0, 0, 0), **fields: float) -> Counts:
    return Counts(at_s=number * INTERVAL_S, ttft=ttft, itl=(0, 0, 0, 0), **fields)  # type: ignore[arg-type]


def test_the_first_counts_are_where_points_begin() -> None:
    traffic = Traffic(EDGES, EDGES)
    traffic.take(counts(0, requests=1000.0), 0.0)
    assert not traffic.points
    traffic.take(counts(1, requests=1010.0, failed=2.0), 2.0)
    assert traffic.points[-1].requests_per_s == 10 / INTERVAL_S
    assert traffic.points[-1].failed_per_s == 2 / INTERVAL_S


def test_a_quantile_is_of_the_last_half_minute() -> None:
    traffic = Traffic(EDGES, EDGES)
    traffic.take(counts(0), 0.0)
    traffic.take(counts(1, (0, 0, 10, 0)), 2.0)
    assert traffic.points[-1].ttft_s_p50 == pytest.approx(3.0)
    for number in range(2, QUANTILE_POINTS + 1):
        traffic.take(counts(number, (0, 0, 10, 0)), 0.0)
    assert traffic.points[-1].ttft_s_p50 is not None
    traffic.take(counts(QUANTILE_POINTS + 1, (0, 0, 10, 0)), 0.0)
    assert traffic.points[-1].ttft_s_p50 is None


def test_who_has_seen_some_points_is_told_the_others_as_far_as_they_are_kept() -> None:
    traffic = Traffic(EDGES, EDGES)
    for number in range(KEPT_POINTS + 51):
        traffic.take(counts(number, requests=float(number)), float(number))
    assert [point.at for point in traffic.since(traffic.taken - 2)] == [KEPT_POINTS + 49, KEPT_POINTS + 50]
    assert len(traffic.since(0)) == KEPT_POINTS
    assert traffic.since(traffic.taken) == []
