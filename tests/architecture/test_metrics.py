"""Metrics: named as Prometheus advises, labelled with nothing that clients make up, and all in the reference."""

import re

import pytest

from tests.metrics_page import ELSEWHERE, LABEL_BOUNDS, PAGE, Metric, metrics, page

ALL = metrics()
UNITS = ("_seconds", "_bytes", "_tokens")
OTHER_UNITS = re.compile(r"_(s|ms|us|milliseconds|minutes|kb|mb|gb|percent|perc)(_|$)")


def test_the_reference_tells_what_the_code_has() -> None:
    assert PAGE.read_text() == page(), "a metric has changed: run `make metrics` and commit services/METRICS.md"


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_is_named_as_prometheus_advises(metric: Metric) -> None:
    assert re.fullmatch(r"armature_[a-z][a-z0-9_]*", metric.name)
    assert not OTHER_UNITS.search(metric.name), "seconds, bytes and shares, never others"
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert metric.type != "histogram" or metric.name.endswith(UNITS), "a histogram's name ends with its unit"
    assert metric.text[0].isupper() or metric.text[0].isdigit()
    assert metric.text.endswith("."), "the text is a sentence"


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_label_has_few_values(metric: Metric) -> None:
    unknown = set(metric.labels) - set(LABEL_BOUNDS)
    assert not unknown, f"say in tests/metrics_page.py what limits the values of {unknown}"


def test_what_is_compared_with_others_exists() -> None:
    compared = set(re.findall(r"armature_\w+", ELSEWHERE))
    assert compared <= {metric.name for metric in ALL}
