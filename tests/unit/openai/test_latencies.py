"""Histograms that count in finer steps than they are scraped in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import HistogramMetricFamily

from armature.openai.serving.latencies import STEPS, Latencies, fine_edges, quantile

BOUNDS = (0.1, 1.0, 10.0)


@given(st.lists(st.floats(0.001, 30.0), min_size=1))
def test_what_is_scraped_is_what_was_observed(times: list[float]) -> None:
    latencies, family = Latencies(BOUNDS), HistogramMetricFamily("x", "X.", labels=["model"])
    for seconds in times:
        latencies.observe(seconds)
    latencies.tell(family, "demo")
    told = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "x_bucket"}
    assert told == {
        **{str(bound): sum(seconds <= bound for seconds in times) for bound in BOUNDS},
        "+Inf": len(times),
    }
    assert next(sample.value for sample in family.samples if sample.name == "x_sum") == pytest.approx(sum(times))


@given(st.lists(st.floats(0.11, 10.0), min_size=1), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_is_within_one_step_of_the_true_one(times: list[float], share: float) -> None:
    latencies = Latencies(BOUNDS)
    for seconds in times:
        latencies.observe(seconds)
    ranked = sorted(times)
    true = ranked[max(0, -int(-share * len(times) // 1) - 1)]
    found = quantile(latencies.edges_s, latencies.counts, share)
    step = 10 ** (1 / STEPS)
    assert found is not None
    assert true / step <= found * 1.001
    assert found <= max(true * step, BOUNDS[0]) * 1.001


def test_equal_times_at_once_count_as_many() -> None:
    latencies = Latencies(BOUNDS)
    latencies.observe(4.0, 8)
    assert quantile(latencies.edges_s, latencies.counts, 0.5) == pytest.approx(0.5, rel=0.3)
    assert sum(latencies.counts) == 8


def test_of_nothing_there_is_no_quantile_and_of_too_long_times_the_last_edge() -> None:
    edges = fine_edges(BOUNDS)
    assert quantile(edges, [0] * (len(edges) + 1), 0.5) is None
    assert quantile(edges, [0] * len(edges) + [3], 0.5) == 10.0
