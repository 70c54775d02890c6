"""`python -m tests.campaigns.planner`: load comes, doubles, shifts and vanishes, over and over, and leaders die.

A cell of `armature up --planner local` with simulated workers and two planners. Prints one JSON object: what was asked
and answered, what the planners did, how long after each change of load the fleet was another one, and how often a plan
took back what another had done under the same load. Exits with 1 if a request failed or a plan had a problem.
"""

import argparse
import asyncio
import json
import tempfile
import time
from bisect import bisect
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from armature.v1.planner_pb2 import LogEntry, WorkerCounts
from tests.campaigns.planner.run import CHANGE, HELD, LEADERSHIP, Shape, did, planned_cell, traffic_on

POLICY = """
targets: {ttft_s: 2.5, itl_s: 0.2, quantile: 0.95}
interval_s: 1.0
window_s: 10.0
pattern_s: 40.0
start_up_s: 5.0
down_after_s: 30.0
flip_after_s: 4.0
forecast: {quantile: 0.8, forecasters: [{constant: {windows: 2}}, {ewma: {alpha: 0.5}}, holt]}
limits: {max_workers: 8}
"""
FLAGS = ("--prefill=1", "--decode=1", "--set=router.disaggregation=always")
PHASES = {
    "comes": Shape(1.0, 4000, 10),
    "doubles": Shape(2.0, 4000, 10),
    "shifts": Shape(4.0, 200, 100),
    "vanishes": Shape(0.0, 1, 1),
}


def phase_at(at_s: float, phases: Sequence[tuple[float, str]]) -> int:
    """The number of the phase that this was in; -1 before the first."""
    return bisect([began_s for began_s, _ in phases], at_s) - 1


def taken_back(log: Sequence[LogEntry], phases: Sequence[tuple[float, str]]) -> int:
    """Plans that grow the fleet where the last one of the same phase shrank it, and the other way round."""
    steps = [
        (
            phase_at(entry.at_s, phases),
            total(entry.plan.counts) > total(entry.fleet.ready) + total(entry.fleet.starting),
        )
        for entry in log
        if entry.kind == CHANGE and not (entry.plan.flips_to_decode or entry.plan.flips_to_prefill)
    ]
    return sum(before[0] == after[0] and before[1] != after[1] for before, after in pairwise(steps))


def total(counts: WorkerCounts) -> int:
    return counts.aggregated + counts.prefill + counts.decode


def told(entry: LogEntry, phases: Sequence[tuple[float, str]]) -> str:
    """With the time since the load was another one."""
    phase = phase_at(entry.at_s, phases)
    began_s, name = phases[phase] if phase >= 0 else (phases[0][0], "before")
    done = f"; done: {', '.join(entry.done)}" if entry.done else ""
    return f"{name} {entry.at_s - began_s:+.1f} s: {entry.text}{done}"


async def main() -> int:
    parser = argparse.ArgumentParser(prog="campaign-planner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--phase-s", type=float, default=75.0, help="how long each kind of traffic lasts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        async with planned_cell(Path(name), POLICY, *FLAGS) as cell:
            reactions_s: dict[str, list[float]] = {phase: [] for phase in PHASES}
            phases: list[tuple[float, str]] = []
            async with traffic_on(cell) as traffic:
                for _ in range(options.rounds):
                    for phase, shape in PHASES.items():
                        last, began_s = max([entry.number for entry in await cell.log()], default=0), time.time()
                        traffic.shape = shape
                        phases.append((began_s, phase))
                        await asyncio.sleep(options.phase_s)
                        done = [one for one in await cell.log() if one.number > last and one.kind == CHANGE]
                        reactions_s[phase] += [round(entry.at_s - began_s, 1) for entry in done[:1]]
                        if phase == "doubles":
                            await cell.kill_leader()
                traffic.shape = PHASES["vanishes"]
            log = await cell.log()
    problems = [problem for entry in log for problem in entry.problems]
    words = {word: sum(did(word)(entry) for entry in log) for word in ("starts", "turned", "drains")}
    result = {
        "asked": traffic.asked,
        "answered": traffic.answered,
        "failures": traffic.failures,
        "changes": sum(entry.kind == CHANGE for entry in log),
        "changes_that": words,
        "held_back": sum(entry.kind == HELD for entry in log),
        "leaders": sum(entry.kind == LEADERSHIP for entry in log),
        "taken_back": taken_back(log, phases),
        "problems": problems,
        "first_change_after_s": reactions_s,
        "log": [told(entry, phases) for entry in log],
    }
    print(json.dumps(result, indent=2))
    return 0 if traffic.asked == traffic.answered and not traffic.failures and not problems else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
