"""Rehearsals in the simulator, off the event loop and within a time: better no answer than a late one."""

import asyncio
import random
import time
from dataclasses import dataclass

from armature.planning.capacity import Targets
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Arrivals
from armature.routing.policy import Policy
from armature.sim.what_if import OutOfTime, Verdict, WhatIf

HOUR_S = 3600.0
_MOST_REQUESTS = 1500
"""The latest of them: two replays of so many take some seconds."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is replayed, on what."""

    kind: WorkerKind
    block_size: int
    targets: Targets
    window_s: float
    arrivals: Arrivals
    pace: float
    """How many times as fast as they came."""
    counts: Counts
    now: Counts


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What has come of it; without a verdict, the problem says why."""

    scene: Scene
    verdict: Verdict | None
    problem: str = ""


def latest(arrivals: Arrivals, since_s: float) -> Arrivals:
    """Those that came since, as many as are replayed."""
    recent = arrivals.since(since_s)
    return Arrivals(*(column[-_MOST_REQUESTS:] for column in recent))


async def rehearse(scene: Scene, placement: Policy, budget_s: float) -> Rehearsed:
    """Replay; after `budget_s` it is given up."""
    deadline_s = time.monotonic() + budget_s
    what_if = WhatIf(
        scene.kind,
        scene.block_size,
        scene.targets,
        scene.window_s,
        placement,
        rng=lambda: random.Random(0),
        is_over=lambda: time.monotonic() > deadline_s,
    )
    try:
        verdict = await asyncio.to_thread(what_if.judge, scene.arrivals, scene.pace, scene.counts, scene.now)
    except OutOfTime:
        return Rehearsed(scene, None, f"the replay takes longer than {budget_s:g} s")
    except ValueError as error:
        return Rehearsed(scene, None, str(error))
    return Rehearsed(scene, verdict)
