"""Workers die and come back; requests move on with what they have."""

import pytest

from armature.sim.cell import Failure
from armature.sim.record import Outcome
from armature.sim.simulation import Simulation
from armature.sim.summary import summarize
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim.worlds import BLOCK_SIZE, cell, check_conservation, families, simulation


def test_a_request_moves_with_its_prompt_and_its_tokens() -> None:
    trace = Trace([TraceRequest(0.0, 100, 200, [1, 2, 3, 4])], BLOCK_SIZE)
    undisturbed = simulation(trace, cell(2), "round_robin")
    undisturbed.run()
    moved = simulation(trace, cell(2, failures=(Failure("w0", 1.0),)), "round_robin")
    moved.run()
    before, after = undisturbed.outcomes[0], moved.outcomes[0]
    assert (before.worker_id, after.worker_id, after.migrations) == ("w0", "w1", 1)
    assert after.output_tokens == before.output_tokens == 200
    assert after.first_token_s == before.first_token_s
    # Only what was known is computed again, at prompt speed.
    assert before.finish_s < after.finish_s < before.finish_s + 0.1


@pytest.mark.parametrize("stretches", [True, False])
def test_what_was_answered_before_a_death_does_not_depend_on_how_steps_are_planned(stretches: bool) -> None:
    trace = families(80, rate=20.0)
    failures = (Failure("w1", 1.7), Failure("w2", 3.2, 1.0))
    run = simulation(trace, cell(failures=failures, stretches=stretches), "round_robin").run()
    other = simulation(trace, cell(failures=failures, stretches=not stretches), "round_robin").run()
    assert sum(one.migrations for one in run.outcomes) > 0
    for one, another in zip(run.outcomes, other.outcomes, strict=True):
        assert one.finish_s == pytest.approx(another.finish_s, abs=1e-9)


@pytest.mark.parametrize("policy", ["seconds", "round_robin", "dynamo"])
def test_a_worker_that_comes_back_is_empty_and_serves_again(policy: str) -> None:
    trace = families(300, rate=20.0)
    done = simulation(trace, cell(failures=(Failure("w0", 4.0, 3.0),), detection_s=1.0), policy)
    run = done.run()
    check_conservation(done, trace)
    placed = {one.arrival_s for one in run.outcomes if one.worker_id == "w0"}
    assert not [at_s for at_s in placed if 5.0 < at_s < 7.0]
    assert [at_s for at_s in placed if at_s > 7.0]


def test_until_a_death_is_known_requests_come_back_from_it() -> None:
    trace = families(100, rate=20.0)

    def migrations(detection_s: float) -> int:
        shape = cell(failures=(Failure("w0", 1.0),), detection_s=detection_s)
        return summarize(simulation(trace, shape, "round_robin").run()).migrations

    assert migrations(10.0) > migrations(0.0) > 0


def test_a_cell_that_is_dead_for_good_tells_so() -> None:
    trace = families(20, rate=20.0)
    shape = cell(1, failures=(Failure("w0", 0.5),), detection_s=1.0)
    done = simulation(trace, shape, "round_robin")
    summary = summarize(done.run())
    assert summary.errors > 10
    assert all("no decode worker" in one.error for one in failed(done))


def test_an_unknown_worker_can_not_fail() -> None:
    with pytest.raises(ValueError, match="no worker 'w9' to fail; there are w0, w1"):
        cell(2, failures=(Failure("w9", 1.0),))


def failed(done: Simulation) -> list[Outcome]:
    return [one for one in done.outcomes if one.error]
