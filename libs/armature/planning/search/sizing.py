"""How many replicas of a deployment traffic takes, by replaying its arrivals through queues: see `queueing.py`."""

from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from armature.planning.capacity import Capacity, Predicted, Targets, demand_of
from armature.planning.fleet import Counts
from armature.planning.observer import Arrivals
from armature.planning.search.replica import Point, Pool, Workload, point_of
from armature.planning.search.search import AGGREGATED, Bounds, handoff_s


class Fitted(NamedTuple):
    """A deployment with as many replicas as the traffic takes."""

    point: Point
    """Its counts are those of the traffic; its rate is what they could carry if nobody minded waiting."""
    predicted: Predicted
    """At the targets' quantile, with waiting."""
    holds: bool
    """Whether the targets are held."""
    cost_per_hour: float
    """By what a GPU costs; 0 where nobody says."""


def shortlist(found: Iterable[Point], itl_s: float, each: int) -> list[Point]:
    """For each type of GPU and mode the best ways to split the model, each run as well as it goes within the ITL."""
    best: dict[tuple[object, ...], Point] = {}
    for one in found:
        if one.itl_s > itl_s:
            continue
        key = (one.gpu, one.mode, *(pool.replica.split for pool in one.pools))
        if key not in best or one.tokens_per_s_per_gpu > best[key].tokens_per_s_per_gpu:
            best[key] = one
    kept: list[Point] = []
    for group in sorted({(one.gpu, one.mode) for one in best.values()}):
        members = [one for one in best.values() if (one.gpu, one.mode) == group]
        kept += sorted(members, key=lambda one: (-one.tokens_per_s_per_gpu, one.gpus, str(one)))[:each]
    return kept


def fit(
    point: Point, arrivals: Arrivals, targets: Targets, bounds: Bounds, work: Workload, price: float = 0.0
) -> Fitted:  # fmt: skip
    """The fewest replicas that hold the targets, or what comes nearest within the bounds.

    Raises:
        ValueError: there are no arrivals.
    """
    if not arrivals.num_requests:
        raise ValueError("there are no arrivals to size for")
    counts, predicted, holds = (_aggregated if point.mode == AGGREGATED else _disaggregated)(
        point, arrivals, targets, bounds, work
    )
    pools = tuple(pool._replace(num_replicas=count) for pool, count in zip(point.pools, counts, strict=True))
    sized = point_of(point.mode, pools, point.ttft_s, point.itl_s, work)
    return Fitted(sized, predicted, holds and sized.gpus <= bounds.gpus, price * sized.gpus)


def cheapest(fitted: Iterable[Fitted]) -> Fitted | None:
    """What holds the targets at least cost, or with the fewest GPUs where nothing is said of costs."""
    holding = [one for one in fitted if one.holds]
    return min(
        holding,
        key=lambda one: (one.cost_per_hour, one.point.gpus, one.predicted.ttft_s, str(one.point)),
        default=None,
    )


def _aggregated(
    point: Point, arrivals: Arrivals, targets: Targets, bounds: Bounds, _: Workload
) -> tuple[list[int], Predicted, bool]:
    (pool,) = point.pools
    kind = replace(pool.replica.lane(), max_num_batched_tokens=pool.chunk_tokens + pool.batch)
    capacity, lanes = Capacity(kind, targets), pool.replica.split.lanes
    demand = demand_of(arrivals, kind, 0.0)
    count = ceil(capacity.least_aggregated(demand, _most(pool, bounds)) / lanes)
    predicted = capacity.predict(demand, Counts(count * lanes))
    return [count], predicted, capacity.holds(predicted)


def _disaggregated(
    point: Point, arrivals: Arrivals, targets: Targets, bounds: Bounds, work: Workload
) -> tuple[list[int], Predicted, bool]:
    prefill, decode = point.pools
    kind = decode.replica.lane(handoff_s(prefill.replica, work, bounds))
    capacity = Capacity(kind, targets)
    demand = demand_of(arrivals, prefill.replica.lane(), 0.0)
    least = capacity.least_disaggregated(demand, max(_most(prefill, bounds), _most(decode, bounds)))
    counts = [
        ceil(lanes / pool.replica.split.lanes)
        for lanes, pool in ((least.prefill, prefill), (least.decode, decode))
    ]  # fmt: skip
    lanes = [count * pool.replica.split.lanes for count, pool in zip(counts, point.pools, strict=True)]
    predicted = capacity.predict(demand, Counts(0, *lanes))
    return counts, predicted, capacity.holds(predicted)


def _most(pool: Pool, bounds: Bounds) -> int:
    """Lanes that all GPUs together would hold."""
    return max(bounds.gpus // pool.replica.split.gpus, 1) * pool.replica.split.lanes
