"""Serves `armature.v1.Planner`: what the planner knows, and what it is told."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from armature.planning.fleet import Counts
from armature.runtime.errors import CallerError, UnavailableError
from armature.runtime.etcd_errors import EtcdError
from armature.steering.book import Book
from armature.steering.loop import Steering
from armature.steering.telling import counts_from, rehearsal_to, with_targets
from armature.v1 import planner_pb2 as pb
from armature.v1 import planner_pb2_grpc

_ENTRIES = 50
"""When no number is asked for."""


class PlannerServicer(planner_pb2_grpc.PlannerServicer):
    """Any planner of the cell answers, whether it leads or not."""

    def __init__(self, steering: Steering, book: Book, member_id: str, leader: Callable[[], str]) -> None:
        self._steering = steering
        self._book = book
        self._member_id = member_id
        self._leader = leader

    async def GetStatus(self, request: pb.StatusRequest, context: Any) -> pb.PlannerStatus:
        return self._status()

    async def WatchPlan(self, request: pb.WatchPlanRequest, context: Any) -> AsyncIterator[pb.PlannerStatus]:
        while True:
            yield self._status()
            await self._steering.stepped.wait()

    async def SetTargets(self, request: pb.SetTargetsRequest, context: Any) -> pb.SetTargetsResponse:
        before = self._steering.targets()
        targets = self._steering.own_targets() if request.reset else self._steering.targets()
        for field, value in request.ListFields():
            if field.name != "reset":
                setattr(targets, field.name, value)
        names = [field.name for field in targets.DESCRIPTOR.fields if _differ(field.name, before, targets)]
        changes = [f"{name} {getattr(before, name):g} is {getattr(targets, name):g} now" for name in names]
        try:
            with_targets(self._steering.policy, targets)
        except ValueError as error:
            raise CallerError(str(error)) from error
        if changes or request.reset:
            try:
                if targets == self._steering.own_targets():
                    await self._book.forget_targets()
                else:
                    await self._book.set_targets(targets)
            except EtcdError as error:
                raise UnavailableError(f"targets are kept in etcd, which does not take them: {error}") from error
            text = f"targets were {'reset' if request.reset else 'set'}: {', '.join(changes) or 'none is another now'}"
            self._book.note(pb.LogEntry(kind=pb.LogEntry.KIND_TARGETS, text=text))
            await self._book.flush()
        return pb.SetTargetsResponse(targets=targets)

    async def Rehearse(self, request: pb.RehearseRequest, context: Any) -> pb.RehearseResponse:
        counts = counts_from(request.counts) if request.HasField("counts") else None
        if counts is not None:
            _check(counts)
        rehearsed = await self._steering.rehearse(counts)
        if isinstance(rehearsed, str):
            raise UnavailableError(rehearsed, retry_after_s=1.0)
        return rehearsal_to(rehearsed)

    async def ListLog(self, request: pb.ListLogRequest, context: Any) -> pb.ListLogResponse:
        return pb.ListLogResponse(entries=self._book.entries(request.limit or _ENTRIES, request.after))

    def _status(self) -> pb.PlannerStatus:
        status = pb.PlannerStatus()
        status.CopyFrom(self._steering.status)
        status.planner, status.leader = self._member_id, self._leader()
        return status


def _differ(name: str, one: pb.PlannerTargets, other: pb.PlannerTargets) -> bool:
    return getattr(one, name) != getattr(other, name)


def _check(counts: Counts) -> None:
    if not (counts.aggregated or counts.decode):
        raise CallerError(f"counts are {counts}: nobody would produce tokens")
    if counts.total > 1024:
        raise CallerError(f"counts are {counts}; at most 1024 workers are replayed")
