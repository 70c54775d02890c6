"""Recent requests replayed on another fleet."""

import random

import numpy as np
import pytest

from armature.performance.linear import LinearModel
from armature.planning.capacity import Targets
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Arrivals
from armature.runtime.policies import load_policy
from armature.sim.what_if import OutOfTime, Verdict, WhatIf

KIND = WorkerKind(performance=LinearModel(0.01, 1e-4, 1e-8, 1e-3, 0.0), kv_tokens=64_000, max_num_seqs=32)
"""A prompt of 1,000 tokens takes a second."""


def what_if(**changes: object) -> WhatIf:
    fields = {
        "kind": KIND, "block_size": 16, "targets": Targets(ttft_s=3.0, itl_s=1.5), "window_s": 10.0,
        "placement": load_policy("seconds"), "rng": lambda: random.Random(0), **changes,
    }  # fmt: skip
    return WhatIf(**fields)  # type: ignore[arg-type]


def arrivals(count: int, every_s: float, cached: int = 0) -> Arrivals:
    times = 50.0 + every_s * np.arange(count)
    return Arrivals(times, np.full(count, 1000.0 - cached), np.full(count, float(cached)), np.full(count, 5.0))


def test_too_few_are_worse_and_more_are_not() -> None:
    told = what_if().judge(arrivals(60, 0.7), 1.0, Counts(1), Counts(3))
    assert told.attained < 0.5 and told.attained_now == 1.0 and told.is_worse
    assert not what_if().judge(arrivals(60, 0.7), 1.0, Counts(4), Counts(3)).is_worse


def test_at_half_the_pace_half_the_workers_do() -> None:
    assert what_if().judge(arrivals(60, 0.7), 0.4, Counts(1), Counts(3)) == (1.0, 1.0)


def test_what_was_cached_costs_nothing_again() -> None:
    assert what_if().judge(arrivals(60, 0.7, cached=800), 1.0, Counts(1), Counts(3)).attained == 1.0


def test_prefill_and_decode_workers_are_replayed_as_such() -> None:
    told = what_if().judge(arrivals(40, 0.7), 1.0, Counts(0, 3, 1), Counts(0, 1, 1))
    assert told.attained > told.attained_now


def test_a_good_plan_is_not_worse_though_it_attains_less() -> None:
    assert not Verdict(0.99, 1.0).is_worse and not Verdict(0.5, 0.51).is_worse and Verdict(0.5, 0.9).is_worse


def test_who_runs_out_of_time_says_so_and_nothing_else() -> None:
    with pytest.raises(OutOfTime):
        what_if(is_over=lambda: True).judge(arrivals(60, 0.7), 1.0, Counts(1), Counts(3))
    with pytest.raises(ValueError, match="no requests"):
        what_if().judge(arrivals(0, 1.0), 1.0, Counts(1), Counts(3))
