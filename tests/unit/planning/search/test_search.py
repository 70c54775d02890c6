"""The search over deployments, against trying every one of them, on engines whose times are given by five numbers."""

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.performance.linear import LinearModel
from armature.performance.step import StepShape
from armature.planning.search.replica import Point, Pool, Replica, Split, Workload, point_of
from armature.planning.search.search import Bounds, best_within, frontier, handoff_s, points, undominated
from armature.planning.search.steady import Rate, aggregated_rates, decode_rates, prefill_rates

WORK = Workload(isl=2000, osl=200)
BOUNDS = Bounds(gpus=8, ttft_s=2.0)


def replica(tp: int = 1, *, speed: float = 1.0, gpu: str = "g", **more: Any) -> Replica:
    """More GPUs a layer: quicker, but less than in proportion, and more memory."""
    gain = speed * tp**0.8
    model = LinearModel(0.01 / gain, 1e-5 / gain, 2e-8 / gain, 1e-4 / gain, 0.0)
    usual: dict[str, Any] = {"kv_tokens": 60_000 * tp, "token_bytes": 100_000, "split": Split(tp=tp)}
    return Replica(gpu=gpu, performance=model, **(usual | more))


REPLICAS = [replica(1), replica(2), replica(4), replica(1, split=Split(dp=2, ep=2), kv_tokens=50_000)]


def every_disaggregated(replicas: list[Replica], work: Workload, bounds: Bounds) -> Iterator[Point]:
    """All pairs, all ways to run both sides, all counts."""
    for prefill, decode in product(replicas, replicas):
        for prompt, answer in product(prefill_rates(prefill, work), decode_rates(decode, work)):
            ttft_s = prompt.ttft_s + handoff_s(prefill, work, bounds)
            for num_prefill, num_decode in product(range(1, bounds.gpus), repeat=2):
                pools = (
                    Pool("prefill", prefill, num_prefill, prompt.batch, prompt.requests_per_s),
                    Pool("decode", decode, num_decode, answer.batch, answer.requests_per_s),
                )
                one = point_of("disaggregated", pools, ttft_s, answer.itl_s, work)
                if one.gpus <= bounds.gpus and ttft_s <= bounds.ttft_s:
                    yield one


def every_aggregated(replicas: list[Replica], work: Workload, bounds: Bounds) -> Iterator[Point]:
    for one in replicas:
        for rate, count in product(aggregated_rates(one, work), range(1, bounds.gpus // one.split.gpus + 1)):
            if rate.ttft_s <= bounds.ttft_s:
                pool = Pool("aggregated", one, count, rate.batch, rate.requests_per_s, rate.chunk_tokens)
                yield point_of("aggregated", (pool,), rate.ttft_s, rate.itl_s, work)


def curve(found: list[Point]) -> list[tuple[float, float]]:
    return [(one.itl_s, pytest.approx(one.tokens_per_s_per_gpu)) for one in found]  # pyright: ignore[reportReturnType]


@settings(max_examples=8, deadline=None)
@given(st.integers(200, 9000), st.integers(2, 800), st.integers(2, 9), st.floats(0.1, 5.0))
def test_the_frontier_is_the_one_of_all_deployments(isl: int, osl: int, gpus: int, ttft_s: float) -> None:
    work, bounds = Workload(isl=isl, osl=osl), Bounds(gpus=gpus, ttft_s=ttft_s)
    for mode, every in (("aggregated", every_aggregated), ("disaggregated", every_disaggregated)):
        found = frontier(points(REPLICAS[:3], work, bounds, [mode]))
        assert curve(found) == curve(frontier(every(REPLICAS[:3], work, bounds)))


def test_a_frontier_trades_speed_for_throughput() -> None:
    found = [*points(REPLICAS, WORK, BOUNDS)]
    best = frontier(found)
    assert len(best) > 5
    assert all(a.itl_s < b.itl_s and a.tokens_per_s_per_gpu < b.tokens_per_s_per_gpu for a, b in pairwise(best))
    for one in found:
        assert any(
            other.itl_s <= one.itl_s and other.tokens_per_s_per_gpu >= one.tokens_per_s_per_gpu for other in best
        )


def test_nothing_found_breaks_a_bound() -> None:
    for one in points(REPLICAS, WORK, BOUNDS):
        assert 0 < one.gpus <= BOUNDS.gpus and one.ttft_s <= BOUNDS.ttft_s


def test_the_best_within_a_target_is_the_one_with_most_throughput() -> None:
    found = [*points(REPLICAS, WORK, BOUNDS)]
    best = best_within(found, 0.015)
    assert best is not None
    assert best.tokens_per_s_per_gpu == max([one.tokens_per_s_per_gpu for one in found if one.itl_s <= 0.015])
    assert best_within(found, 1e-6) is None


def test_types_of_gpus_are_not_mixed_in_one_deployment() -> None:
    found = [*points([replica(1), replica(1, gpu="h")], WORK, BOUNDS)]
    assert {one.gpu for one in found} == {"g", "h"}
    assert all(len({pool.replica.gpu for pool in one.pools}) == 1 for one in found)


def test_prompts_that_disturb_answers_make_disaggregation_pay() -> None:
    """With an ITL at which hardly a prompt fits beside answers, separate pools carry more."""
    best = {
        mode: best_within(points(REPLICAS[:3], WORK, BOUNDS, [mode]), 0.006) for mode in ("aggregated", "disaggregated")
    }
    aggregated, disaggregated = best["aggregated"], best["disaggregated"]
    assert aggregated is not None and disaggregated is not None
    assert disaggregated.tokens_per_s_per_gpu > 1.1 * aggregated.tokens_per_s_per_gpu


def test_steady_rates_keep_littles_law() -> None:
    """Answers in flight are how often they come times how long they take."""
    for rate in aggregated_rates(replica(2), WORK):
        assert rate.requests_per_s * rate.itl_s * (WORK.osl - 1) == pytest.approx(rate.batch)
    for rate in decode_rates(replica(1, split=Split(dp=2)), WORK):
        assert rate.requests_per_s * rate.itl_s * (WORK.osl - 1) == pytest.approx(2 * rate.batch)


def test_a_step_by_step_engine_agrees_with_the_steady_rate() -> None:
    """One chunk of a prompt in every so many steps, added up."""
    one = replica(1)
    rate = next(rate for rate in aggregated_rates(one, WORK) if (rate.batch, rate.chunk_tokens) == (16, 1024))
    mixed_s = one.performance.step_s(StepShape(16, 16 * 2100, 1024, 1024 * 1000))
    decode_s = one.performance.step_s(StepShape(16, 16 * 2100))
    took_s, prompt_tokens, answer_tokens = 0.0, 0.0, 0
    for _ in range(20_000):
        is_mixed = prompt_tokens <= answer_tokens / 199 * 2000
        took_s += mixed_s if is_mixed else decode_s
        prompt_tokens += 1024 * is_mixed
        answer_tokens += 16
    assert answer_tokens / 199 / took_s == pytest.approx(rate.requests_per_s, rel=0.01)


def test_memory_bounds_the_batch_and_lanes_multiply_it() -> None:
    batches = [rate.batch for rate in decode_rates(replica(1, kv_tokens=21_000), WORK)]
    assert max(batches) == 9
    assert not [*decode_rates(replica(1, kv_tokens=2100), WORK)]


def test_what_another_way_beats_in_everything_is_left_out() -> None:
    slow, good, quick = Rate(1.0, 1.0, 0.02, 4), Rate(2.0, 0.5, 0.02, 8), Rate(1.5, 0.2, 0.02, 2)
    assert set(undominated([slow, good, quick])) == {good, quick}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Split(tp=0), "tp is 0"),
        (lambda: Split(tp=4, ep=3), "ep is 3; it must divide tp"),
        (lambda: Workload(isl=10, osl=1), "osl is 1; it must be at least 2"),
        (lambda: Workload(isl=10, osl=5, cached_tokens=10), "must be below isl"),
        (lambda: Bounds(gpus=0, ttft_s=1.0), "gpus is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make()
