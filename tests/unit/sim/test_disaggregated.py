"""Prefill and decode on different workers: the prompt's blocks travel, and whatever goes wrong costs only time."""

from typing import Any

import pytest

from armature.sim.cell import CellShape, Failure
from armature.sim.simulation import Simulation
from armature.sim.summary import summarize
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim.worlds import BLOCK_SIZE, cell, check_conservation, families, simulation

FAST, SLOW = 1e13, 2e9


def split(**more: Any) -> CellShape:
    return cell(0, num_prefill=2, num_decode=2, **more)


def one_prompt(num_blocks: int) -> Trace:
    return Trace([TraceRequest(0.0, num_blocks * BLOCK_SIZE, 40, list(range(num_blocks)))], BLOCK_SIZE)


@pytest.mark.parametrize("policy", ["seconds", "round_robin", "dynamo"])
def test_prompts_are_computed_elsewhere_and_nothing_is_lost(policy: str) -> None:
    trace = families(150, rate=20.0)
    done = simulation(trace, split(), policy)
    run = done.run()
    check_conservation(done, trace)
    assert run.failed_fetches == 0
    assert sum(1 for one in run.outcomes if one.prefill_id) > 50
    assert all(worker.steps for worker in run.workers)


def test_the_first_token_waits_for_the_prompt_and_for_its_last_block_only() -> None:
    """Blocks travel while the rest is computed, so a link that keeps up adds the time of the last chunk's blocks."""
    trace = one_prompt(200)
    times = {speed: ttft(simulation(trace, split(link_bytes_per_s=speed), "round_robin")) for speed in (FAST, 40e9)}
    block_s = BLOCK_SIZE * 262_144 / 40e9
    chunk_s = 2048 / BLOCK_SIZE * block_s
    assert times[FAST] < times[40e9] < times[FAST] + chunk_s + block_s
    slow = ttft(simulation(trace, split(link_bytes_per_s=SLOW), "round_robin"))
    assert slow > 199 * BLOCK_SIZE * 262_144 / SLOW


def test_two_readers_of_one_prefill_worker_share_its_link() -> None:
    alone = ttft(
        simulation(one_prompt(200), cell(0, num_prefill=1, num_decode=2, link_bytes_per_s=SLOW), "round_robin")
    )
    asked = [TraceRequest(0.0, 200 * BLOCK_SIZE, 40, list(range(1000 * n, 1000 * n + 200))) for n in range(2)]
    done = simulation(
        Trace(asked, BLOCK_SIZE), cell(0, num_prefill=1, num_decode=2, link_bytes_per_s=SLOW), "round_robin"
    )
    done.run()
    assert {one.worker_id for one in done.outcomes} == {"d0", "d1"}
    assert min(one.first_token_s for one in done.outcomes) > 1.5 * alone


def test_a_prompt_that_the_prefill_worker_holds_counts_as_cached() -> None:
    asked = [TraceRequest(at_s, 100 * BLOCK_SIZE, 5, list(range(100))) for at_s in (0.0, 5.0)]
    done = simulation(Trace(asked, BLOCK_SIZE), cell(0, num_prefill=1, num_decode=2), "round_robin")
    done.run()
    first, second = done.outcomes
    assert (first.cached_tokens, second.cached_tokens) == (0, 99 * BLOCK_SIZE)


@pytest.mark.parametrize("worker_id", ["p0", "d0"])
@pytest.mark.parametrize("at_s", [0.3, 1.0, 3.01, 4.5])
def test_a_death_on_either_side_loses_no_request_and_no_block(worker_id: str, at_s: float) -> None:
    trace = families(150, rate=20.0)
    failures = (Failure(worker_id, at_s, 2.0),)
    done = simulation(trace, split(failures=failures, link_bytes_per_s=SLOW, lease_s=1.0, detection_s=0.5))
    done.run()
    check_conservation(done, trace)


def test_a_prompt_whose_prefill_worker_dies_is_computed_by_its_decode_worker() -> None:
    shape = cell(0, num_prefill=1, num_decode=1, failures=(Failure("p0", 0.1),))
    done = simulation(one_prompt(200), shape, "round_robin")
    summary = summarize(done.run())
    (outcome,) = done.outcomes
    assert (outcome.worker_id, outcome.prefill_id, outcome.migrations) == ("d0", "p0", 0)
    assert summary.failed_fetches == 1
    check_conservation(done, one_prompt(200))


def ttft(one: Simulation) -> float:
    one.run()
    assert one.outcomes[0].prefill_id
    return one.outcomes[0].first_token_s
