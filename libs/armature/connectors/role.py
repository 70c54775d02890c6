"""Changes of role: a worker does something else without reloading its weights, and keeps what it has cached."""

import asyncio
from collections.abc import Sequence

import grpc

from armature.connectors.census import ROLES, fleet_of
from armature.connectors.connector import Observed, Order, Outcome, Problem, ProblemKind, Reach, Workers
from armature.planning.decision import Flips
from armature.planning.fleet import Counts
from armature.runtime.channels import ChannelPool
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, ROLE_DECODE, ROLE_PREFILL, Member, Role
from armature.v1.worker_pb2 import SetRoleRequest
from armature.v1.worker_pb2_grpc import WorkerStub

_TIMEOUT_S = 10.0
"""For one change: the worker waits for etcd."""
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Roles:
    """Gives workers other roles; also for connectors that start and stop some."""

    def __init__(self, workers: Workers, channels: ChannelPool) -> None:
        self._workers = workers
        self._channels = channels
        self._told: dict[str, Role.ValueType] = {}
        """Roles that workers have said to have, and whose records we have not seen yet."""

    def members(self) -> list[Member]:
        """All workers, as they are by now."""
        found = list(self._workers.members())
        roles = {member.id: member.worker.role for member in found}
        self._told = {key: role for key, role in self._told.items() if roles.get(key, role) != role}
        return [_with_role(member, self._told.get(member.id, member.worker.role)) for member in found]

    async def flip(self, flips: Flips) -> Outcome:
        """Change the roles of so many, the idlest first."""
        return await self.turn(
            [
                *self._pick(ROLE_DECODE, ROLE_PREFILL, flips.to_prefill),
                *self._pick(ROLE_PREFILL, ROLE_DECODE, flips.to_decode),
            ]
        )

    async def turn(self, changes: "Sequence[tuple[Member, Role.ValueType]]") -> Outcome:
        """Give each of these workers another role, all at once."""
        outcomes = await asyncio.gather(*(self._set(member, role) for member, role in changes))
        return joined(*outcomes)

    def of_role(self, role: "Role.ValueType") -> list[Member]:
        """Those that have it and don't drain, the idlest first; of equals the one that came last."""
        found = [
            member for member in self.members() if member.worker.role == role and member.state != MEMBER_STATE_DRAINING
        ]
        places = {member.id: place for place, member in enumerate(found)}
        return sorted(found, key=lambda member: (self._workers.in_flight(member.id), -places[member.id]))

    def _pick(self, old: "Role.ValueType", new: "Role.ValueType", count: int) -> "list[tuple[Member, Role.ValueType]]":
        return [(member, new) for member in self.of_role(old)[:count]]

    async def _set(self, member: Member, role: "Role.ValueType") -> Outcome:
        try:
            stub = WorkerStub(self._channels.get(member.address))
            await stub.SetRole(SetRoleRequest(role=role), timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            kind = ProblemKind.AWAY if error.code() in _AWAY else ProblemKind.FAILED
            return Outcome(problems=(Problem(kind, f"{member.id} keeps its role: {error.details()}"),))
        self._told[member.id] = role
        return Outcome((f"{member.id} turned from {name_of(member.worker.role)} to {name_of(role)}",))


class RoleConnector:
    """Changes roles and nothing else: for fleets whose size is somebody else's business."""

    name = "role"
    reach = Reach.FLIPS

    def __init__(self, workers: Workers, channels: ChannelPool) -> None:
        self._roles = Roles(workers, channels)

    async def observe(self) -> Observed:
        """Those who have registered."""
        return Observed(fleet_of(self._roles.members()))

    async def apply(self, order: Order) -> Outcome:
        """Turn workers of roles that have more than is wanted to roles that lack some."""
        ready = fleet_of(self._roles.members()).ready
        surplus = _too_many(ready, order.counts)
        lacking = _too_many(order.counts, ready)
        spare = [(role, member) for role, count in surplus for member in self._roles.of_role(role)[:count]]
        wanted = [role for role, count in lacking for _ in range(count)]
        outcome = await self._roles.turn([(member, role) for (_, member), role in zip(spare, wanted, strict=False)])
        if order.counts.total == ready.total:
            return outcome
        text = f"{order.counts.total} workers are wanted of {ready.total}: the role connector starts and stops none"
        return joined(outcome, Outcome(problems=(Problem(ProblemKind.REFUSED, text),)))

    async def close(self) -> None:
        """There is nothing to let go of."""


def joined(*outcomes: Outcome) -> Outcome:
    """All that was done, and all that went wrong."""
    done = [text for outcome in outcomes for text in outcome.done]
    return Outcome(tuple(done), tuple(problem for outcome in outcomes for problem in outcome.problems))


def _with_role(member: Member, role: "Role.ValueType") -> Member:
    if member.worker.role == role:
        return member
    changed = Member()
    changed.CopyFrom(member)
    changed.worker.role = role
    return changed


def name_of(role: "Role.ValueType") -> str:
    """In words, such as `prefill`."""
    return Role.Name(role).removeprefix("ROLE_").lower()


def _too_many(counts: Counts, wanted: Counts) -> "list[tuple[Role.ValueType, int]]":
    """By how many each role has more, where it has."""
    return [(role, have - want) for role, have, want in zip(ROLES, counts, wanted, strict=True) if have > want]
