"""The workers of one model as a planner sees them: their records, their loads and how fast they turn out to be."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean

from armature.connectors.census import ROLES
from armature.performance.linear import LinearModel
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.observer import Backlog
from armature.runtime.channels import ChannelPool
from armature.runtime.member_streams import MemberStreams
from armature.runtime.membership import MemberChange
from armature.runtime.tasks import Spawn
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, MEMBER_STATE_READY, Member, ModelCard, Role
from armature.v1.worker_pb2 import LoadReport, LoadRequest
from armature.v1.worker_pb2_grpc import WorkerStub

_INTERVAL_S = 0.5
"""Between two reports of a worker."""
_FORGET_S = 900.0
"""A worker that has not come by then comes for another reason."""

Started = Callable[[Member, float], None]
"""Is told of a worker that has become ready, and how long after it was asked for."""


class WorkerBoard:
    """Follows the workers of `model`; of the first one that comes, if it is empty."""

    def __init__(self, model: str, gpus: int, channels: ChannelPool, spawn: Spawn) -> None:
        self.on_started: Started = lambda member, took_s: None
        self.model = model
        self.block_size = 0
        """Of the model's workers; 0 until there was one."""
        self.card: ModelCard | None = None
        """As the last one described it."""
        self._gpus = gpus
        self._channels = channels
        self._members: dict[str, Member] = {}
        self._loads: dict[str, LoadReport] = {}
        self._asked: dict[Role.ValueType, deque[float]] = {role: deque() for role in ROLES}
        self._kind: WorkerKind | None = None
        self._streams = MemberStreams("load", channels, spawn, self._read)

    # --- what connectors ask

    def members(self) -> Sequence[Member]:
        """Also those that drain, the longest registered first."""
        return list(self._members.values())

    def in_flight(self, member_id: str) -> int:
        """As it last reported."""
        load = self._loads.get(member_id)
        return load.running_seqs + load.waiting_seqs if load is not None else 0

    # --- what the planner asks

    @property
    def kind(self) -> WorkerKind | None:
        """A worker of the fleet, in the mean of what those that are there have measured; None until one has.

        While nobody is there, what they were last.
        """
        told = [(self._members[key], load) for key, load in self._loads.items() if load.HasField("step_costs")]
        if not told:
            return self._kind
        costs = LinearModel(
            *(fmean(getattr(load.step_costs, name) for _, load in told) for name in LinearModel.__slots__)
        )
        infos = [member.worker for member, _ in told]
        self._kind = WorkerKind(
            performance=costs,
            kv_tokens=min(info.num_blocks * info.model.block_size for info in infos),
            max_num_seqs=min(info.max_num_seqs for info in infos),
            max_num_batched_tokens=min(info.max_num_batched_tokens for info in infos),
            gpus=self._gpus,
        )
        return self._kind

    def backlogs(self) -> tuple[Backlog, ...]:
        """What those that are ready have to do."""
        ready = [key for key, member in self._members.items() if member.state != MEMBER_STATE_DRAINING]
        loads = [(self._members[key], self._loads[key]) for key in ready if key in self._loads]
        return tuple(
            Backlog(
                load.waiting_prefill_tokens,
                load.running_seqs,
                (load.total_blocks - load.free_blocks) * member.worker.model.block_size,
            )
            for member, load in loads
        )

    def expect(self, before: Counts, after: Counts) -> None:
        """So many more were asked for just now, by role."""
        now_s = time.monotonic()
        for role, have, want in zip(ROLES, before, after, strict=True):
            self._asked[role].extend([now_s] * max(want - have, 0))

    # --- what happens

    def on_change(self, change: MemberChange) -> None:
        """A worker has come, changed or left."""
        member = change.member
        name = member.worker.model.name
        self.model = self.model or name
        if name != self.model:
            return
        if change.kind == "left":
            self._members.pop(member.id, None)
            self._loads.pop(member.id, None)
        else:
            self._members[member.id] = member
            self.block_size = member.worker.model.block_size
            self.card = member.worker.model
            if change.kind == "joined" and member.state == MEMBER_STATE_READY:
                self._came(member)
        self._streams.on_change(change)

    def _came(self, member: Member) -> None:
        asked, now_s = self._asked.get(member.worker.role), time.monotonic()
        while asked and now_s - asked[0] > _FORGET_S:
            asked.popleft()
        if asked:
            self.on_started(member, now_s - asked.popleft())

    async def _read(self, member: Member, has_read: Callable[[], None]) -> None:
        call = WorkerStub(self._channels.get(member.address)).Load(LoadRequest(min_interval_s=_INTERVAL_S))
        try:
            while isinstance(report := await call.read(), LoadReport):
                self._loads[member.id] = report
                has_read()
        finally:
            call.cancel()
