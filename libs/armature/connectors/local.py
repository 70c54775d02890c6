"""Starts and drains the worker processes of `armature up`, through the control that it serves on a Unix socket."""

from collections.abc import Iterable

import grpc

from armature.connectors.census import ROLES, counts_of, fleet_of
from armature.connectors.connector import Observed, Order, Outcome, Problem, ProblemKind, Reach, Workers
from armature.connectors.role import Roles, joined, name_of
from armature.planning.fleet import Fleet
from armature.runtime.channels import ChannelPool
from armature.v1.cell_pb2 import ListWorkersRequest, StartWorkerRequest, StopWorkerRequest, WorkerProcess
from armature.v1.cell_pb2_grpc import CellControlStub
from armature.v1.common_pb2 import Role

_TIMEOUT_S = 5.0
_FAILING = 3
"""Starts in a row of one worker from which on it is told as a problem."""


class LocalConnector:
    """A cell on one machine. Where roles differ from those that processes were started with, the workers' own count."""

    name = "local"
    reach = Reach.SCALES

    def __init__(self, control: str, workers: Workers, channels: ChannelPool) -> None:
        """`control` is the address of the cell's control, `unix:/path`."""
        self._channel = grpc.aio.insecure_channel(control)
        self._control = CellControlStub(self._channel)
        self._roles = Roles(workers, channels)
        self._last = Fleet()

    async def observe(self) -> Observed:
        """Registered workers by what they are now, and processes that have not registered yet."""
        try:
            processes = await self._list()
        except grpc.aio.AioRpcError as error:
            return Observed(self._last, (_away(error),), is_stale=True)
        self._last = self._fleet(processes)
        problems = [
            Problem(ProblemKind.FAILED, f"{one.name} does not start: {one.last_error}")
            for one in processes
            if one.state == WorkerProcess.STATE_STARTING and one.restarts >= _FAILING
        ]
        return Observed(self._last, tuple(problems))

    async def apply(self, order: Order) -> Outcome:
        """Flip, then start and drain what the difference is."""
        flipped = await self._roles.flip(order.flips)
        done: list[str] = []
        try:
            await self._scale(order, done)
        except grpc.aio.AioRpcError as error:
            return joined(flipped, Outcome(tuple(done), (_away(error),)))
        return joined(flipped, Outcome(tuple(done)))

    async def close(self) -> None:
        await self._channel.close()

    async def _list(self) -> list[WorkerProcess]:
        return list((await self._control.ListWorkers(ListWorkersRequest(), timeout=_TIMEOUT_S)).workers)

    async def _scale(self, order: Order, done: list[str]) -> None:
        """Put each thing into `done` once it is: what was done before the control went away is told, too."""
        processes = await self._list()
        for role, want, have in zip(ROLES, order.counts, self._fleet(processes).wanted, strict=True):
            for _ in range(want - have):
                started = await self._control.StartWorker(StartWorkerRequest(role=role), timeout=_TIMEOUT_S)
                done.append(f"{started.worker.name} starts as {name_of(role)}")
            for name in self._to_stop(role, processes)[: max(have - want, 0)]:
                await self._control.StopWorker(StopWorkerRequest(name=name), timeout=_TIMEOUT_S)
                done.append(f"{name} drains, it was {name_of(role)}")

    def _fleet(self, processes: Iterable[WorkerProcess]) -> Fleet:
        """Only workers of these processes count; one starts until it has registered, and is what it says from then on.

        A worker that is not claimed by a process has just registered, or its process has just died.
        """
        told = list(processes)
        members = {member.id: member for member in self._roles.members()}
        staying = [one for one in told if one.state != WorkerProcess.STATE_STOPPING]
        seen = fleet_of(members[one.member_id] for one in staying if one.member_id in members)
        starting = counts_of(one.role for one in staying if one.member_id not in members)
        return Fleet(seen.ready, starting, seen.draining + len(told) - len(staying))

    def _to_stop(self, role: "Role.ValueType", processes: Iterable[WorkerProcess]) -> list[str]:
        """Processes of a role in the order in which they go: those that start, the youngest first; then the idlest."""
        told = list(processes)
        known = {member.id for member in self._roles.members()}
        staying = [one for one in told if one.state != WorkerProcess.STATE_STOPPING]
        starting = [one.name for one in reversed(staying) if one.member_id not in known and one.role == role]
        names = {one.member_id: one.name for one in staying}
        return [*starting, *(names[member.id] for member in self._roles.of_role(role) if member.id in names)]


def _away(error: grpc.aio.AioRpcError) -> Problem:
    return Problem(ProblemKind.AWAY, f"`armature up` does not answer: {error.details()}")
