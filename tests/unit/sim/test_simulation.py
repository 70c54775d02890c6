"""A simulated cell loses nothing, cheats nowhere and shows what caches are worth."""

import pytest

from armature.runtime.policies import shipped_policies
from armature.sim.summary import summarize
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim.worlds import BLOCK_SIZE, cell, check_conservation, families, simulation


@pytest.mark.parametrize("policy", shipped_policies())
def test_every_request_ends_with_all_its_tokens_and_leaves_no_block_behind(policy: str) -> None:
    trace = families(150, rate=20.0)
    done = simulation(trace, cell(), policy)
    run = done.run()
    check_conservation(done, trace)
    assert sum(worker.requests for worker in run.workers) == 150


def test_a_cell_without_memory_to_spare_preempts_and_still_serves_all() -> None:
    contents = [[1000 * n + i for i in range(6)] for n in range(40)]
    trace = Trace([TraceRequest(0.01 * n, 6 * BLOCK_SIZE, 400, contents[n]) for n in range(40)], BLOCK_SIZE)
    done = simulation(trace, cell(2, num_blocks=60), "round_robin")
    summary = summarize(done.run())
    check_conservation(done, trace)
    assert summary.preemptions > 0


def test_a_prompt_that_fits_nowhere_is_an_error_and_not_a_wait() -> None:
    contents = list(range(80))
    trace = Trace([TraceRequest(0.0, 80 * BLOCK_SIZE, 5, contents), TraceRequest(0.1, 40, 5, [1, 2])], BLOCK_SIZE)
    for policy in ("seconds", "round_robin"):
        summary = summarize(simulation(trace, cell(2, num_blocks=60), policy).run())
        assert (summary.errors, summary.served) == (1, 1)


@pytest.mark.parametrize("num_blocks", [700, 220])
def test_stretches_of_equal_steps_change_nothing_but_the_time_it_takes(num_blocks: int) -> None:
    trace = families(80, rate=20.0)
    for policy in ("round_robin", "dynamo"):
        fast = simulation(trace, cell(num_blocks=num_blocks), policy).run()
        slow = simulation(trace, cell(num_blocks=num_blocks, stretches=False), policy).run()
        for one, other in zip(fast.outcomes, slow.outcomes, strict=True):
            assert one.worker_id == other.worker_id
            assert one.cached_tokens == other.cached_tokens
            assert one.first_token_s == pytest.approx(other.first_token_s, abs=1e-9)
            assert one.finish_s == pytest.approx(other.finish_s, abs=1e-9)
        assert [worker.steps for worker in fast.workers] == [worker.steps for worker in slow.workers]


def test_a_prompt_takes_as_long_as_the_model_says() -> None:
    shape = cell(1)
    trace = Trace([TraceRequest(0.0, 100, 11, list(range(4)))], BLOCK_SIZE)
    outcome = simulation(trace, shape, "round_robin").run().outcomes[0]
    model = shape.performance
    expected_s = 0.007847 + 100 * 46.29e-6 + 2.0048e-9 * 100 * 50
    assert outcome.first_token_s == pytest.approx(max(expected_s, 0.010974 + 100 * 22.61e-6 + 1e-5), rel=1e-3)
    assert outcome.finish_s - outcome.first_token_s == pytest.approx(model.stretch_s(1, 101, 10))


def test_knowing_where_the_cache_is_beats_not_knowing_on_traffic_with_shared_prefixes() -> None:
    trace = families(400, rate=25.0)
    found = {name: summarize(simulation(trace, cell(), name).run()) for name in ("round_robin", "dynamo", "seconds")}
    for aware in ("dynamo", "seconds"):
        assert found[aware].reuse > found["round_robin"].reuse + 0.2
        assert found[aware].ttft_s.mean < found["round_robin"].ttft_s.mean / 1.5
    assert found["seconds"].ttft_s.mean < found["dynamo"].ttft_s.mean


def test_late_events_cost_hits_and_lose_nothing() -> None:
    trace = families(200, rate=25.0)
    prompt, late = (simulation(trace, cell(event_lag_s=lag_s), "dynamo") for lag_s in (0.0, 5.0))
    assert summarize(late.run()).reuse < summarize(prompt.run()).reuse
    check_conservation(late, trace)


def test_twice_the_speed_is_half_the_time_between_arrivals() -> None:
    trace = families(10, rate=1.0)
    faster = trace.sped_up(2.0)
    assert [one.arrival_s for one in faster.requests] == [one.arrival_s / 2 for one in trace.requests]
    with pytest.raises(ValueError, match="speed-up is 0"):
        trace.sped_up(0)


def test_clients_that_wait_for_their_answers_are_never_more_than_there_are() -> None:
    trace = families(60, rate=1.0)
    done = simulation(trace, cell(), concurrency=5)
    done.run()
    check_conservation(done, trace)
    changes = sorted([(one.finish_s, -1) for one in done.outcomes] + [(one.arrival_s, 1) for one in done.outcomes])
    at_once = [sum(change for _, change in changes[: i + 1]) for i in range(len(changes))]
    assert max(at_once) == 5
    assert at_once.count(5) > 50


def test_a_slice_keeps_what_is_equal_and_begins_at_its_own_zero() -> None:
    trace = families(100, rate=1.0)
    part = trace.cut_out(20.0, 30.0)
    inside = [one for one in trace.requests if 20 <= one.arrival_s < 50]
    assert [one.contents for one in part.requests] == [one.contents for one in inside]
    assert [one.arrival_s for one in part.requests] == [one.arrival_s - 20 for one in inside]
    assert len(trace.cut_out(num_requests=7).requests) == 7
    with pytest.raises(ValueError, match="no request arrives from 1e\\+06 s"):
        trace.cut_out(1e6)


def test_routers_that_hear_late_and_of_a_part_only_still_lose_nothing() -> None:
    trace = families(150, rate=20.0)
    shape = cell(event_lag_s=0.2, report_interval_s=1.0)
    done = simulation(trace, shape, routers=3)
    summary = summarize(done.run())
    check_conservation(done, trace)
    alone = summarize(simulation(trace, cell()).run())
    assert summary.ttft_s.mean > alone.ttft_s.mean


def test_routers_that_share_their_placements_balance_like_one() -> None:
    """Load alone is looked at, reports come late, and each of four routers sees a quarter of what is placed."""
    trace = families(300, rate=30.0)

    def mean_ttft_s(routers: int, share_lag_s: float | None) -> float:
        shape = cell(report_interval_s=5.0, share_lag_s=share_lag_s)
        done = simulation(trace, shape, "least_loaded", routers=routers)
        ttft_s = summarize(done.run()).ttft_s.mean
        check_conservation(done, trace)
        return ttft_s

    one, apart, together = mean_ttft_s(1, None), mean_ttft_s(4, None), mean_ttft_s(4, 0.001)
    assert abs(together - one) < abs(apart - one)
