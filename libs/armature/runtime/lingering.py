"""Members that count for a while after they have left, since others take over what they were there for.

Those that come back meanwhile have never left.
"""

import asyncio
from collections.abc import Callable

from armature.runtime.roster import MemberChange

PLANNER_LINGERS_S = 15.0
"""Longer than a lease: what a planner has promised holds until its standby, or its next life, promises it again."""


class Lingering:
    """Passes changes on at once, but that somebody has left after `linger_s`; called from the event loop."""

    def __init__(self, on_change: Callable[[MemberChange], None], linger_s: float = PLANNER_LINGERS_S) -> None:
        self._on_change = on_change
        self._linger_s = linger_s
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    def __call__(self, change: MemberChange) -> None:
        member_id = change.member.id
        if leaving := self._leaving.pop(member_id, None):
            leaving.cancel()
        if change.kind != "left":
            self._on_change(change)
            return
        loop = asyncio.get_running_loop()
        self._leaving[member_id] = loop.call_later(self._linger_s, self._let_go, change)

    def _let_go(self, change: MemberChange) -> None:
        del self._leaving[change.member.id]
        self._on_change(change)
