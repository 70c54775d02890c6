"""A replay in outline: what it says beside the simulation in all detail, and that nobody is lost."""

from dataclasses import replace

import numpy as np
import pytest

from armature.planning.fleet import Counts
from armature.planning.rivals import Schedule
from armature.sim.cell import CellShape, Failure
from armature.sim.elastic import Scaling
from armature.sim.outline import OutlineSimulation
from armature.sim.record import Record
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim import worlds


def outlined(trace: Trace, cell: CellShape, *changes: tuple[float, int], start_up_s: float = 20.0) -> Record:
    schedule = Schedule([(at_s, Counts(count)) for at_s, count in changes])
    simulation = OutlineSimulation(trace, cell, Scaling(planner=schedule, start=schedule.first, start_up_s=start_up_s))
    simulation.run()
    record = simulation.outcomes
    assert record.ended == len(record) == len(trace.requests)
    assert record.is_served().all()
    first_s, finish_s = record.times("first_token_s"), record.times("finish_s")
    assert (record.times("arrival_s") < first_s).all()
    assert (first_s <= finish_s).all()
    assert [one.output_tokens for one in trace.requests] == record.counts("output_tokens").tolist()
    return record


@pytest.mark.parametrize(("workers", "rate"), [(1, 1.0), (4, 4.0), (4, 6.0)])
def test_it_comes_near_to_the_whole_simulation(workers: int, rate: float) -> None:
    trace, cell = worlds.families(400, rate=rate), worlds.cell(workers)
    near = outlined(trace, cell, (0.0, workers))
    whole = worlds.simulation(trace, cell).run().outcomes
    for begin, end in (("arrival_s", "first_token_s"), ("first_token_s", "finish_s")):
        took, told = (one.times(end) - one.times(begin) for one in (whole, near))
        assert np.median(told) == pytest.approx(np.median(took), rel=0.15, abs=0.005)
        assert np.quantile(told, 0.95) == pytest.approx(np.quantile(took, 0.95), rel=0.3, abs=0.02)
    cached, told = (one.counts("cached_tokens").sum() for one in (whole, near))
    assert told == pytest.approx(cached, rel=0.15)


def test_a_lone_request_takes_what_the_steps_take() -> None:
    cell = worlds.cell(1)
    size, chunk = cell.worker.block_size, cell.worker.max_num_batched_tokens
    tokens = chunk + 2 * size
    trace = Trace([TraceRequest(1.0, tokens, 5, list(range(-(-tokens // size))))], size)
    near, whole = outlined(trace, cell, (0.0, 1)), worlds.simulation(trace, cell).run().outcomes
    for name in ("first_token_s", "finish_s"):
        assert near.times(name)[0] == pytest.approx(whole.times(name)[0], rel=1e-3)


def test_requests_that_come_when_nobody_is_there_wait_for_the_first_who_is() -> None:
    trace = worlds.families(50, rate=10.0)
    near = outlined(trace, worlds.cell(3), (0.0, 0), (1.0, 2), start_up_s=10.0)
    assert near.times("first_token_s").min() > 11.0


def test_who_leaves_ends_what_he_has_and_comes_back_with_an_empty_cache() -> None:
    trace = worlds.families(300, rate=4.0)
    stayed = outlined(trace, worlds.cell(3), (0.0, 3))
    left = outlined(trace, worlds.cell(3), (0.0, 3), (10.0, 1), (40.0, 3), start_up_s=0.0)
    assert left.counts("cached_tokens").sum() < stayed.counts("cached_tokens").sum()


def test_what_is_left_out_is_refused() -> None:
    scaling = Scaling(planner=Schedule([(0.0, Counts(1))]), start=Counts(1))
    for more in ({"can_pull": True}, {"failures": (Failure("w0", 1.0),)}):
        with pytest.raises(ValueError, match="left out of a replay in outline"):
            OutlineSimulation(worlds.families(3, rate=1.0), replace(worlds.cell(1), **more), scaling)  # pyright: ignore[reportArgumentType]
