"""Placement without a router: the same routing core, over what this gateway itself knows.

It has no index and no load reports, so it goes by its own requests alone. That is worse than a router and better than
no answer: traffic never stops because routers are away.
"""

import logging
import random
import time

from armature.routing.router import RoutingCore
from armature.runtime.errors import PeerError
from armature.runtime.placement import placement_of, query_of, worker_of
from armature.runtime.policies import DEFAULT_POLICY, load_policy
from armature.runtime.roster import MemberChange
from armature.v1 import router_pb2
from armature.v1.common_pb2 import Member, ServingInfo

log = logging.getLogger(__name__)


class LocalRouter:
    """Owns its core; called from the event loop only."""

    def __init__(self) -> None:
        self._core = RoutingCore(load_policy(DEFAULT_POLICY), random.Random())
        self._members: dict[str, Member] = {}

    def member_changed(self, change: MemberChange) -> None:
        """A worker has come, changed or left; other kinds are ignored."""
        member = change.member
        if not member.HasField("worker"):
            return
        if change.kind == "left":
            self._members.pop(member.id, None)
            self._core.remove_worker(member.id)
            return
        try:
            self._core.put_worker(worker_of(member))
        except PeerError as error:
            log.warning("nothing is placed on %s: %s", member.id, error)
        else:
            self._members[member.id] = member

    def place(self, query: router_pb2.Query) -> router_pb2.Placement:
        """Place a request until it is `finished`."""
        placement = placement_of(query.query_id, self._core.place(query_of(query), time.monotonic()), self._members)
        if placement.HasField("assigned"):
            placement.assigned.reason = f"no router could be asked; {placement.assigned.reason}"
        return placement

    def first_token(self, request_id: str, info: ServingInfo) -> None:
        self._core.first_token("", request_id, info.cached_tokens)

    def finished(self, request_id: str, output_tokens: int) -> None:
        self._core.finish("", request_id)
