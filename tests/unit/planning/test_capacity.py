"""The fewest workers that hold the targets, against trying all numbers."""

import numpy as np
import pytest

from armature.planning.capacity import Capacity, Correction, Demand, Targets, demand_of, faster
from armature.planning.fleet import Counts
from tests.unit.planning.kinds import arrivals, kind, poisson

TARGETS = Targets(ttft_s=3.0, itl_s=0.2)


def demand(rate: float, **more: int) -> Demand:
    return demand_of(poisson(rate, 600, **more), kind(), 0.001)


@pytest.mark.parametrize("rate", [0.5, 2.0, 7.0])
@pytest.mark.parametrize("output_tokens", [1, 60])
def test_one_aggregated_worker_less_would_miss_a_target(rate: float, output_tokens: int) -> None:
    capacity, asked = Capacity(kind(), TARGETS), demand(rate, output_tokens=output_tokens)
    least = capacity.least_aggregated(asked, 40)
    holds = [capacity.holds(capacity.predict(asked, Counts(count))) for count in range(1, 41)]
    assert holds[least - 1]
    assert not any(holds[: least - 1])


@pytest.mark.parametrize("rate", [0.4, 4.0])
def test_one_prefill_or_decode_worker_less_would_miss_a_target(rate: float) -> None:
    capacity, asked = Capacity(kind(), TARGETS), demand(rate, output_tokens=2000)
    least = capacity.least_disaggregated(asked, 60)
    assert capacity.holds(capacity.predict(asked, least))
    for fewer in (least._replace(prefill=least.prefill - 1), least._replace(decode=least.decode - 1)):
        assert not capacity.holds(capacity.predict(asked, fewer))


def test_targets_out_of_reach_do_not_take_all_workers_there_are() -> None:
    """A prompt alone takes 5 s: no number of workers makes that 3."""
    asked = demand_of(poisson(1.0, 300, tokens=5000), kind(), 0.001)
    least = Capacity(kind(), TARGETS).least_aggregated(asked, 200)
    assert 6 <= least <= 20


def test_nothing_needs_nobody() -> None:
    nothing = demand_of(arrivals([]), kind(), 0.001)
    assert Capacity(kind(), TARGETS).least_aggregated(nothing, 10) == 0
    assert Capacity(kind(), TARGETS).least_disaggregated(nothing, 10) == Counts()


def test_what_took_longer_than_predicted_takes_more_workers() -> None:
    capacity, asked = Capacity(kind(), TARGETS), demand(6.0)
    exact, slow = (capacity.least_aggregated(asked, 60, correction=Correction(ttft)) for ttft in (1.0, 1.5))
    assert slow > exact


def test_a_bursty_minute_needs_more_than_its_mean() -> None:
    """Sixty prompts a minute, evenly or all at once: the mean is the same, the fleet is not."""
    capacity = Capacity(kind(), TARGETS)
    even = demand_of(arrivals([float(i) for i in range(180)]), kind(), 0.001)
    bursts = demand_of(arrivals([60.0 * (i // 60) for i in range(180)]), kind(), 0.001)
    assert capacity.least_aggregated(even, 100) <= 2
    assert capacity.least_aggregated(bursts, 100) >= 19


def test_cached_prompts_need_fewer_workers() -> None:
    capacity, asked = Capacity(kind(), TARGETS), poisson(4.0, 600)
    cached = asked._replace(new_tokens=asked.new_tokens * 0.4, cached_tokens=asked.new_tokens * 0.6)
    full, part = (capacity.least_aggregated(demand_of(one, kind(), 0.001), 60) for one in (asked, cached))
    assert part <= full / 2


def test_twice_the_rate_is_twice_the_load() -> None:
    capacity, asked = Capacity(kind(), TARGETS), demand(2.0)
    slow, fast = (capacity.predict(one, Counts(8)).load for one in (asked, faster(asked, 2.0)))
    assert fast == pytest.approx(2 * slow, rel=0.01)


def test_roles_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="either aggregated workers, or"):
        Capacity(kind(), TARGETS).predict(demand(1.0), Counts(1, 1, 1))


def test_targets_say_what_is_wrong_with_them() -> None:
    with pytest.raises(ValueError, match="quantile is 1"):
        Targets(ttft_s=1.0, itl_s=0.1, quantile=1)
    with pytest.raises(ValueError, match="itl_s is 0"):
        Targets(ttft_s=1.0, itl_s=0)


def test_prediction_is_the_same_each_time() -> None:
    capacity, asked = Capacity(kind(), TARGETS), demand(3.0, output_tokens=40)
    assert len({capacity.predict(asked, Counts(5)) for _ in range(3)}) == 1
    assert np.isfinite(capacity.predict(asked, Counts(5)).ttft_s)


@pytest.mark.parametrize("near", [0, 1, 5, 9, 39, 40, 77])
def test_wherever_the_search_begins_it_ends_at_the_same_number(near: int) -> None:
    asked = demand(7.0)
    assert Capacity(kind(), TARGETS).least_aggregated(asked, 40, near=near) == Capacity(
        kind(), TARGETS
    ).least_aggregated(asked, 40)
