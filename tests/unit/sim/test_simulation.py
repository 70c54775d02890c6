"""A simulated cell loses nothing, cheats nowhere and shows what caches are worth."""

import pytest

from armature.runtime.policies import shipped_policies
from armature.sim.simulation import Simulation
from armature.sim.summary import summarize
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim.worlds import BLOCK_SIZE, cell, families, simulation


def check_conservation(done: Simulation, trace: Trace) -> None:
    """Every request has ended as it should, and every block is back."""
    for asked, got in zip(trace.requests, done.outcomes, strict=True):
        assert not got.error
        assert got.output_tokens == asked.output_tokens
        assert asked.arrival_s < got.first_token_s <= got.finish_s
        assert got.cached_tokens < asked.prompt_tokens
        assert (got.finish_s == got.first_token_s) == (asked.output_tokens == 1)
    for engine in done.engines:
        engine.pool.check()
        assert not engine.has_work
        assert engine.pool.free_blocks == engine.pool.total_blocks


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
