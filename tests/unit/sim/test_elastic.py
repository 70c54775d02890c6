"""A fleet that follows a planner in simulated time: nothing is lost, and it costs what it costs."""

import random
from collections.abc import Sequence

import pytest

from armature.planning.capacity import Targets
from armature.planning.decision import Decision, Flips, Plans, Reason
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Seen
from armature.planning.planner import Planner
from armature.planning.policy import planner_policy_of
from armature.planning.rivals import Schedule
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy
from armature.sim.attainment import sizing_of
from armature.sim.cell import CellShape
from armature.sim.elastic import Elastic, Scaling
from armature.sim.simulation import Run, Simulation
from armature.sim.trace import Trace
from tests.unit.sim import worlds

TARGETS = Targets(ttft_s=1.0, itl_s=0.1)


def run(trace: Trace, planner: Plans, start: Counts, room: int = 6, **more: float) -> tuple[Run, Elastic]:
    shape = worlds.cell(room)
    cores = [RoutingCore(load_policy("seconds"), random.Random(0))]
    simulation = Simulation(trace, shape, cores, scaling=Scaling(planner=planner, start=start, **more))
    done = simulation.run()
    assert simulation.elastic is not None
    worlds.check_conservation(simulation, trace)
    return done, simulation.elastic


class Script:
    """Decisions that a test has written down."""

    def __init__(self, decisions: Sequence[tuple[float, Counts, Flips]]) -> None:
        self._decisions = list(decisions)
        self.seen: list[Seen] = []

    def step(self, seen: Seen) -> Decision:
        self.seen.append(seen)
        is_due = bool(self._decisions) and self._decisions[0][0] <= seen.now_s
        _, counts, flips = self._decisions.pop(0) if is_due else (0.0, seen.fleet.wanted, Flips())
        return Decision(
            seen.now_s, counts, Reason.GIVEN, "", flips, is_change=is_due, next_s=seen.now_s + 1.0
        )  # fmt: skip


def plain(trace: Trace, workers: int) -> Run:
    return worlds.simulation(trace, worlds.cell(workers)).run()


def test_a_fleet_that_stays_is_the_cell_without_a_planner() -> None:
    trace = worlds.families(150, rate=4.0)
    done, _ = run(trace, Schedule([(0.0, Counts(4))]), Counts(4), room=4)
    assert list(done.outcomes) == list(plain(trace, 4).outcomes)


def test_a_worker_that_is_asked_for_gets_requests_only_when_it_has_started() -> None:
    trace = worlds.families(300, rate=5.0)
    done, elastic = run(trace, Script([(10.0, Counts(3), Flips())]), Counts(1), start_up_s=20.0)
    ready = [(level.at_s, level.ready.total, level.starting) for level in elastic.course]
    assert ready[:3] == [(0.0, 1, 0), (10.0, 1, 2), (30.0, 2, 1)]
    used = {outcome.worker_id for outcome in done.outcomes if outcome.first_token_s < 30.0}
    assert used == {"w0"}
    assert len({outcome.worker_id for outcome in done.outcomes}) == 3


def test_a_worker_that_leaves_ends_what_it_has_and_gets_nothing_new() -> None:
    trace = worlds.families(300, rate=5.0)
    done, elastic = run(trace, Script([(20.0, Counts(1), Flips())]), Counts(3))
    last = elastic.course[-1]
    assert (last.ready.total, last.draining) == (1, 0)
    assert any(level.draining for level in elastic.course)
    assert len({outcome.worker_id for outcome in done.outcomes if outcome.arrival_s > 20.0}) == 1
    assert not any(outcome.migrations for outcome in done.outcomes)


def test_one_that_drains_is_called_back_before_another_is_started() -> None:
    trace = worlds.families(300, rate=8.0)
    script = Script([(20.0, Counts(1), Flips()), (21.0, Counts(3), Flips())])
    _, elastic = run(trace, script, Counts(3))
    back = next(level for level in elastic.course if level.at_s >= 21.0)
    assert back.ready.total + back.starting == 3
    assert back.ready.total > 1


def test_one_that_starts_goes_before_one_that_works() -> None:
    trace = worlds.families(100, rate=4.0)
    script = Script([(5.0, Counts(3), Flips()), (10.0, Counts(2), Flips())])
    _, elastic = run(trace, script, Counts(2))
    assert [(level.ready.total, level.starting, level.draining) for level in elastic.course] == [
        (2, 0, 0), (2, 1, 0), (2, 0, 0)
    ]  # fmt: skip


def test_roles_change_without_a_start_and_without_a_loss() -> None:
    trace = worlds.families(300, rate=5.0)
    script = Script([(15.0, Counts(0, 1, 3), Flips(to_decode=1)), (30.0, Counts(0, 3, 1), Flips(to_prefill=2))])
    done, elastic = run(trace, script, Counts(0, 2, 2), room=4)
    assert [level.ready for level in elastic.course] == [Counts(0, 2, 2), Counts(0, 1, 3), Counts(0, 3, 1)]
    assert not any(level.starting or level.draining for level in elastic.course)
    assert any(outcome.prefill_id for outcome in done.outcomes)


def test_requests_wait_for_the_first_worker_of_a_fleet_that_has_vanished() -> None:
    trace = worlds.families(20, rate=2.0)
    done, _ = run(trace, Script([(3.0, Counts(1), Flips())]), Counts(0), start_up_s=15.0)
    assert all(outcome.first_token_s > 18.0 for outcome in done.outcomes)


def test_a_planner_sees_what_the_record_has() -> None:
    trace = worlds.families(200, rate=5.0)
    script = Script([])
    done, _ = run(trace, script, Counts(3))
    ttfts = sorted(outcome.first_token_s - outcome.arrival_s for outcome in done.outcomes)
    assert sum(seen.num_arrivals for seen in script.seen) == 200
    assert sum(seen.ttft_s.count for seen in script.seen) <= 200
    assert sum(seen.ttft_s.total for seen in script.seen[:-1]) <= sum(ttfts) + 1e-9
    assert script.seen[-1].unanswered_tokens == 0 or script.seen[-1].in_flight


def test_gpu_hours_count_starting_and_draining_workers() -> None:
    trace = worlds.families(200, rate=4.0)
    done, elastic = run(trace, Script([(10.0, Counts(2), Flips())]), Counts(1), start_up_s=20.0)
    end_s = max(outcome.arrival_s for outcome in done.outcomes)
    sizing = sizing_of(done.outcomes, elastic.course, TARGETS, window_s=10.0, gpus=2, changes=1)
    assert sizing.gpu_hours == pytest.approx(2 * (end_s + (end_s - 10.0)) / 3600)
    assert sizing.most_workers == 2
    assert sum(window.requests for window in sizing.windows) == 200


def test_the_planner_grows_a_fleet_that_is_too_small() -> None:
    trace = worlds.families(600, rate=6.0)
    shape: CellShape = worlds.cell(6)
    kind = WorkerKind(
        performance=shape.performance, kv_tokens=700 * worlds.BLOCK_SIZE, max_num_seqs=16, max_num_batched_tokens=2048
    )
    policy = planner_policy_of(
        {"targets": {"ttft_s": 1.0, "itl_s": 0.1}, "start_up_s": 20.0, "limits": {"max_workers": 6}}
    )
    done, elastic = run(trace, Planner(policy, kind), Counts(1), start_up_s=20.0)
    assert elastic.course[-1].ready.total > 1
    late = [one for one in sizing_of(
        done.outcomes, elastic.course, TARGETS, window_s=20.0, gpus=1, changes=0
    ).windows if one.from_s > 60.0]  # fmt: skip
    assert sum(window.is_met for window in late) / len(late) > 0.8


def test_more_than_there_is_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="there is room for 2"):
        run(worlds.families(5, rate=1.0), Schedule([(0.0, Counts(3))]), Counts(3), room=2)
