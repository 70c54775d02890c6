"""How many replicas traffic takes: the fewest that hold the targets with queueing, and the cheapest deployment."""

from dataclasses import replace

import pytest

from armature.planning.capacity import Capacity, Targets, demand_of
from armature.planning.fleet import Counts
from armature.planning.search.replica import Point, Workload
from armature.planning.search.search import Bounds, handoff_s, points
from armature.planning.search.sizing import cheapest, fit, shortlist
from tests.unit.planning.kinds import arrivals, poisson
from tests.unit.planning.search.test_search import REPLICAS, WORK, replica

BOUNDS = Bounds(gpus=64, ttft_s=2.0)
TARGETS = Targets(ttft_s=2.0, itl_s=0.02)
TRAFFIC = poisson(60.0, 400, tokens=WORK.isl, output_tokens=WORK.osl)


def listed(mode: str, itl_s: float = TARGETS.itl_s) -> list[Point]:
    return shortlist(points(REPLICAS, WORK, BOUNDS, [mode]), itl_s, 3)


@pytest.mark.parametrize("point", listed("aggregated"), ids=str)
def test_one_aggregated_replica_less_misses_a_target(point: Point) -> None:
    fitted = fit(point, TRAFFIC, TARGETS, BOUNDS, WORK)
    (pool,) = fitted.point.pools
    assert fitted.holds and pool.num_replicas > 1
    kind = replace(pool.replica.lane(), max_num_batched_tokens=pool.chunk_tokens + pool.batch)
    capacity, lanes = Capacity(kind, TARGETS), pool.replica.split.lanes
    demand = demand_of(TRAFFIC, kind, 0.0)
    assert capacity.predict(demand, Counts(pool.num_replicas * lanes)) == fitted.predicted
    assert not capacity.holds(capacity.predict(demand, Counts((pool.num_replicas - 1) * lanes)))


@pytest.mark.parametrize("point", listed("disaggregated"), ids=str)
def test_one_prefill_or_decode_replica_less_misses_a_target(point: Point) -> None:
    fitted = fit(point, TRAFFIC, TARGETS, BOUNDS, WORK)
    prefill, decode = fitted.point.pools
    assert fitted.holds
    capacity = Capacity(decode.replica.lane(handoff_s(prefill.replica, WORK, BOUNDS)), TARGETS)
    demand = demand_of(TRAFFIC, prefill.replica.lane(), 0.0)
    for fewer in ((1, 0), (0, 1)):
        left = [
            (pool.num_replicas - less) * pool.replica.split.lanes
            for pool, less in zip(fitted.point.pools, fewer, strict=True)
        ]  # fmt: skip
        assert not capacity.holds(capacity.predict(demand, Counts(0, *left)))


def test_bursts_take_more_than_the_mean() -> None:
    point = listed("aggregated")[0]
    even = arrivals([i / 20 for i in range(400)], WORK.isl, WORK.osl)
    bursts = arrivals([10.0 * (i // 200) for i in range(400)], WORK.isl, WORK.osl)
    calm, wild = (fit(point, one, TARGETS, BOUNDS, WORK).point.gpus for one in (even, bursts))
    assert wild > 1.5 * calm


def test_what_no_number_within_the_bounds_holds_is_said() -> None:
    tight = Bounds(gpus=2, ttft_s=2.0)
    fitted = fit(listed("aggregated")[0], TRAFFIC, TARGETS, tight, WORK)
    assert not fitted.holds
    assert cheapest([fitted]) is None


def test_without_prices_the_fewest_gpus_win_and_with_them_the_least_cost() -> None:
    twice = [replica(1, speed=2.0, gpu="quick"), replica(1, gpu="plain")]
    found = shortlist(points(twice, WORK, BOUNDS, ["aggregated"]), TARGETS.itl_s, 3)

    def winner(**prices: float) -> str:
        fitted = [fit(one, TRAFFIC, TARGETS, BOUNDS, WORK, prices.get(one.gpu, 0.0)) for one in found]
        best = cheapest(fitted)
        assert best is not None
        return best.point.gpu

    assert winner() == "quick"
    assert winner(quick=9.0, plain=1.0) == "plain"


def test_the_shortlist_has_every_mode_and_each_split_once() -> None:
    found = shortlist(points(REPLICAS, WORK, BOUNDS), TARGETS.itl_s, 2)
    assert [one.mode for one in found] == ["aggregated"] * 2 + ["disaggregated"] * 2
    assert all(one.itl_s <= TARGETS.itl_s for one in found)
    splits = [(one.mode, *(pool.replica.split for pool in one.pools)) for one in found]
    assert len(set(splits)) == len(splits)


def test_no_arrivals_are_refused() -> None:
    with pytest.raises(ValueError, match="no arrivals"):
        fit(listed("aggregated")[0], arrivals([]), TARGETS, BOUNDS, Workload(isl=1, osl=2))
