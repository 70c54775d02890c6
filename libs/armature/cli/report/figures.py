"""What the pictures of a report show, computed from runs: plain points."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from armature.sim.simulation import Run

_SPANS = 100
_QUANTILE_POINTS = 201

Floats = NDArray[np.float64]
Points = list[tuple[float, float]]


class Times(NamedTuple):
    """Of the requests that were served."""

    arrival_s: Floats
    first_token_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    itl_s: Floats
    """NaN for answers of one token."""
    prompt_tokens: Floats
    cached_tokens: Floats


def times_of(run: Run) -> Times:
    """Columns of the record, without requests that have failed."""
    record = run.outcomes
    served = record.is_served()
    arrival_s, first_s, finish_s = (record.times(f"{name}_s")[served] for name in ("arrival", "first_token", "finish"))
    prompt, output, cached = (record.counts(f"{name}_tokens")[served] for name in ("prompt", "output", "cached"))
    gaps = np.where(output > 1, output - 1, np.nan)
    return Times(
        arrival_s,
        first_s,
        first_s - arrival_s,
        finish_s - arrival_s,
        (finish_s - first_s) / gaps,
        prompt.astype(np.float64),
        cached.astype(np.float64),
    )


def distribution(values: Floats) -> Points:
    """The share of requests that took at most so long, for a logarithmic axis of time."""
    known = np.sort(values[np.isfinite(values)])
    if not len(known):
        return []
    shares = np.linspace(0.0, 1.0, _QUANTILE_POINTS)
    positions = np.minimum((shares * len(known)).astype(int), len(known) - 1)
    return [(max(float(known[at]), 1e-4), float(share)) for at, share in zip(positions, shares, strict=True)]


def over_time(at_s: Floats, values: Floats, quantile: float, end_s: float) -> Points:
    """A quantile of what happened in each span of the run; spans in which nothing did are left out."""
    known = np.isfinite(values)
    at_s, values = at_s[known], values[known]
    spans = np.minimum((at_s / end_s * _SPANS).astype(int), _SPANS - 1)
    order = np.argsort(spans, kind="stable")
    spans, values = spans[order], values[order]
    edges = np.searchsorted(spans, np.arange(_SPANS + 1))
    return [
        ((i + 0.5) * end_s / _SPANS, float(np.quantile(values[low:high], quantile)))
        for i, (low, high) in enumerate(pairwise(edges))
        if high > low
    ]


def hit_rate(times: Times, end_s: float) -> Points:
    """Share of the prompt tokens that were found cached, by when requests came."""
    spans = np.minimum((times.arrival_s / end_s * _SPANS).astype(int), _SPANS - 1)
    prompt = np.bincount(spans, weights=times.prompt_tokens, minlength=_SPANS)
    cached = np.bincount(spans, weights=times.cached_tokens, minlength=_SPANS)
    return [
        ((i + 0.5) * end_s / _SPANS, float(cached[i] / prompt[i])) for i in range(_SPANS) if prompt[i]
    ]  # fmt: skip


def unanswered(times: Times) -> Points:
    """How many requests wait for their first token, wherever they are."""
    end_s = float(times.first_token_s.max(initial=0.0))
    come, told = np.sort(times.arrival_s), np.sort(times.first_token_s)
    at_s = np.linspace(0.0, end_s, _QUANTILE_POINTS)
    waiting = np.searchsorted(come, at_s, side="right") - np.searchsorted(told, at_s, side="right")
    return [(float(x), float(y)) for x, y in zip(at_s, waiting, strict=True)]


def level(run: Run, name: str) -> Points:
    """A quantity of the timeline."""
    width_s = run.timeline.width_s
    return [((i + 0.5) * width_s, value) for i, value in enumerate(run.timeline.means(name))]


class Load(NamedTuple):
    """How busy workers were: a row for each, or for each group of neighbours if there are many."""

    names: Sequence[str]
    rows: Sequence[Sequence[float]]
    """From 0 to 1, by span."""
    width_s: float


def load(run: Run, most_rows: int = 32, most_columns: int = 128) -> Load:
    """The load of all workers, in at most so many rows and columns."""
    names = [worker.worker_id for worker in run.workers]
    busy = np.array([run.timeline.means(name) for name in names])
    group, join = -(-len(names) // most_rows), -(-busy.shape[1] // most_columns)
    rows = [busy[first : first + group].mean(axis=0) for first in range(0, len(names), group)]
    joined = [[float(row[at : at + join].mean()) for at in range(0, len(row), join)] for row in rows]
    labels = [_label(names[first : first + group]) for first in range(0, len(names), group)]
    return Load(labels, joined, run.timeline.width_s * join)


def _label(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}-{names[-1]}"
