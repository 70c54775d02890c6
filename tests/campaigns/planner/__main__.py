"""`python -m tests.campaigns.planner`: load comes, doubles, shifts and vanishes, over and over, and leaders die.

A cell of `armature up --planner local` with simulated workers and two planners. Prints one JSON object: what was asked
and answered, what the planners did, and how long after each change of load the fleet was another one. Exits with 1 if a
request failed or a plan had a problem.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from tests.campaigns.planner.run import CHANGE, HELD, LEADERSHIP, Shape, did, planned_cell, traffic_on

POLICY = """
targets: {ttft_s: 2.5, itl_s: 0.2, quantile: 0.95}
interval_s: 1.0
window_s: 5.0
pattern_s: 20.0
start_up_s: 5.0
down_after_s: 15.0
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


async def main() -> int:
    parser = argparse.ArgumentParser(prog="campaign-planner", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--phase-s", type=float, default=45.0, help="how long each kind of traffic lasts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        async with planned_cell(Path(name), POLICY, *FLAGS) as cell:
            reactions_s: dict[str, list[float]] = {phase: [] for phase in PHASES}
            async with traffic_on(cell) as traffic:
                for _ in range(options.rounds):
                    for phase, shape in PHASES.items():
                        last, began_s = max([entry.number for entry in await cell.log()], default=0), time.time()
                        traffic.shape = shape
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
        "problems": problems,
        "first_change_after_s": reactions_s,
        "log": [entry.text for entry in log],
    }
    print(json.dumps(result, indent=2))
    return 0 if traffic.asked == traffic.answered and not traffic.failures and not problems else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
