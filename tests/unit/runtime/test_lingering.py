"""Members that have left count for a while."""

import asyncio

from armature.runtime.lingering import Lingering
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import Member

PLANNER = Member(id="p", kind="planner")


async def test_who_comes_back_in_time_has_never_left() -> None:
    seen: list[str] = []
    lingering = Lingering(lambda change: seen.append(change.kind), 0.01)
    for kind in ("joined", "left", "updated"):
        lingering(MemberChange(kind, PLANNER))
    await asyncio.sleep(0.05)
    assert seen == ["joined", "updated"]


async def test_who_stays_away_has_left_after_a_while() -> None:
    seen: list[str] = []
    left = asyncio.Event()

    def take(change: MemberChange) -> None:
        seen.append(change.kind)
        if change.kind == "left":
            left.set()

    lingering = Lingering(take, 0.01)
    lingering(MemberChange("joined", PLANNER))
    lingering(MemberChange("left", PLANNER))
    assert seen == ["joined"]
    async with asyncio.timeout(10):
        await left.wait()
    assert seen == ["joined", "left"]
