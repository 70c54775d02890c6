"""What people tell a planner, and how they take it back."""

from typing import Any, cast

import pytest

from armature.runtime.errors import CallerError
from armature.steering.book import Book
from armature.v1.planner_pb2 import PlannerTargets, SetTargetsRequest
from services.planner.servicer import PlannerServicer
from tests.unit.steering.test_loop import POLICY, World


async def told(world: World, **request: Any) -> PlannerTargets:
    servicer = PlannerServicer(world.steering, cast(Book, world.book), "planner", lambda: "planner")
    return (await servicer.SetTargets(SetTargetsRequest(**request), None)).targets


async def test_what_is_set_counts_until_it_is_reset() -> None:
    world = World()
    targets = await told(world, ttft_s=1.5, is_paused=True)
    assert (targets.ttft_s, targets.is_paused, targets.max_workers) == (1.5, True, POLICY.limits.max_workers)
    assert world.steering.is_paused and world.steering.policy.targets.ttft_s == 1.5
    targets = await told(world, reset=True, max_workers=9)
    assert (targets.ttft_s, targets.is_paused, targets.max_workers) == (POLICY.targets.ttft_s, False, 9)
    assert "targets were reset: ttft_s 1.5 is 3 now, max_workers 6 is 9 now, is_paused 1 is 0 now" in [
        entry.text for entry in world.book.noted
    ]
    await told(world, reset=True)
    assert world.book.targets is None and world.steering.policy == POLICY


async def test_what_makes_no_sense_changes_nothing() -> None:
    world = World()
    with pytest.raises(CallerError, match="min_workers is 7"):
        await told(world, min_workers=7)
    assert world.book.targets is None and not world.book.noted
