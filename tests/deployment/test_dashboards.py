"""The Grafana dashboards: every panel's query can be asked, of metrics and labels that exist."""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from tests.metrics_page import Metric, metrics
from tests.support.dashboards import BOARDS, SOURCE, queries

# What Prometheus adds to every sample, and what histograms have.
ADDED = {"job", "instance", "le"}
PARTS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


@cache
def samples() -> dict[str, Metric]:
    """The names of samples, with the metrics that they are of."""
    return {metric.name + part: metric for metric in metrics() for part in PARTS[metric.type]}


def test_the_dashboards_are_what_their_source_makes() -> None:
    spec = importlib.util.spec_from_file_location("dashboards", SOURCE)
    assert spec and spec.loader
    source: Any = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = source  # where dataclasses look up their module
    spec.loader.exec_module(source)
    assert {board.stem for board in BOARDS} == set(source.BOARDS)
    for board in BOARDS:
        assert board.read_text() == source.board(board.stem) + "\n", "run `make dashboards`"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_every_query_is_of_metrics_and_labels_that_exist(board: Path) -> None:
    known = samples()
    for query in queries(board):
        promql_parser.parse(query)
        asked = re.findall(r"armature_\w+", query)
        assert asked and set(asked) <= set(known), query
        labels = {label for found in re.findall(r"by \(([^)]*)\)", query) for label in found.split(", ")}
        assert labels <= ADDED.union(*(known[name].labels for name in asked)), query


def test_what_is_counted_is_asked_for_by_its_rate() -> None:
    for board in BOARDS:
        for query in queries(board):
            counted = [name for name in re.findall(r"armature_\w+", query) if samples()[name].type != "gauge"]
            assert all(f"rate({name}[" in query for name in counted), query
