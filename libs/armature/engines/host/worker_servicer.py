"""Serves `armature.v1.Worker`: what a worker tells about its prefix cache and its load."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict

from prometheus_client import Counter

from armature.blocks.events import KvEvent
from armature.engines.host import metrics
from armature.engines.kv_event_log import KvEventLog
from armature.engines.kv_event_stream import event_batches
from armature.index.tiers import Tier
from armature.runtime.errors import CallerError
from armature.runtime.pulse import Pulse
from armature.scheduling.load_news import differs, is_news
from armature.scheduling.lower_tiers import TierSpeed
from armature.scheduling.request import EngineLoad
from armature.v1 import common_pb2 as common
from armature.v1 import worker_pb2 as worker
from armature.v1 import worker_pb2_grpc

MIN_LOAD_INTERVAL_S = 0.01
"""Nobody decides better for hearing more than a hundred times a second."""
MAX_LOAD_INTERVAL_S = 3600.0
LITTLE_NEWS_INTERVAL_S = 1.0
"""After which changes are told that move no placement."""
SETTLE_S = 0.02
"""A prompt that has come waits, and runs a step later: one report says both."""
ROLES = (common.ROLE_AGGREGATED, common.ROLE_PREFILL, common.ROLE_DECODE)

SetRole = Callable[["common.Role.ValueType"], Awaitable["common.Role.ValueType"]]
"""Changes a worker's role and returns the former one."""


class Board:
    """What the engine's steps have said last; the servicer tells it to whoever asks."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.log = KvEventLog()
        self.load = EngineLoad()
        self.events_changed = Pulse()
        self.load_changed = Pulse()

    def update(self, events: Sequence[KvEvent], load: EngineLoad) -> None:
        """Take in a step."""
        if events:
            self.log.append(events)
            self.events_changed.fire()
        self.load = load
        self.load_changed.fire()


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """Any number of subscribers, each at its own place in the log."""

    def __init__(
        self,
        board: Board,
        transfer_bytes_per_s: Callable[[], float],
        onboarding: Callable[[], Mapping[Tier, TierSpeed]] = dict,
        pull_bytes_per_s: Callable[[], float] = float,
        set_role: SetRole | None = None,
    ) -> None:
        self._board = board
        self._onboarding = onboarding
        self._pull_bytes_per_s = pull_bytes_per_s
        self._transfer_bytes_per_s = transfer_bytes_per_s
        self._set_role = set_role

    async def KvEvents(self, request: worker.KvEventsRequest, context: object) -> AsyncIterator[worker.KvEventBatch]:
        board = self._board
        async for batch in event_batches(board.log, board.epoch, board.events_changed.wait, request):
            yield batch

    async def Load(self, request: worker.LoadRequest, context: object) -> AsyncIterator[worker.LoadReport]:
        board = self._board
        if not 0 <= request.min_interval_s <= MAX_LOAD_INTERVAL_S:  # also refuses NaN
            raise CallerError(
                f"min_interval_s is {request.min_interval_s}; it must be from 0 to {MAX_LOAD_INTERVAL_S:g}"
            )
        interval_s = max(request.min_interval_s, MIN_LOAD_INTERVAL_S)
        while True:
            told, rate, told_s = board.load, self._transfer_bytes_per_s(), time.monotonic()
            yield self._report(told, rate)
            await asyncio.sleep(interval_s)
            while board.load == told and self._transfer_bytes_per_s() == rate:
                await board.load_changed.wait()
            # What a step changes, the next one often changes back: looked at now and then, not at each.
            await asyncio.sleep(min(interval_s, SETTLE_S))
            while not (is_news(board.load, told) or differs(self._transfer_bytes_per_s(), rate)):
                if time.monotonic() >= told_s + LITTLE_NEWS_INTERVAL_S:
                    break
                await asyncio.sleep(interval_s)

    async def SetRole(self, request: worker.SetRoleRequest, context: object) -> worker.SetRoleResponse:
        if request.role not in ROLES:
            raise CallerError(f"role is {request.role}; it must be one of {', '.join(map(common.Role.Name, ROLES))}")
        assert self._set_role is not None, "a worker without a host has no role"
        return worker.SetRoleResponse(former_role=await self._set_role(request.role))

    async def GetStats(self, request: worker.WorkerStatsRequest, context: object) -> worker.WorkerStats:
        load = self._board.load
        prompts, seconds = metrics.counted(metrics.fetches), metrics.counted(metrics.transfer_s)
        return worker.WorkerStats(
            load=self._report(load, self._transfer_bytes_per_s()),
            cached_blocks=load.cached_blocks,
            staged_blocks=load.staged_blocks,
            prefill_tokens=load.computed_prefill_tokens,
            cached_tokens=_sum(metrics.cached_tokens),
            decode_tokens=_sum(metrics.decode_tokens),
            preemptions=load.preemptions,
            transfers=[
                worker.TransferStats(
                    transport=transport,
                    prompts=int(prompts.get(transport, 0)),
                    size_bytes=int(size_bytes),
                    seconds=seconds.get(transport, 0.0),
                )
                for transport, size_bytes in metrics.counted(metrics.transferred_bytes).items()
            ],
            onboarded=[
                worker.TierBytes(tier=common.Tier.Value(f"TIER_{tier.upper()}"), size_bytes=int(size_bytes))
                for tier, size_bytes in metrics.counted(metrics.onboarded_bytes).items()
            ],
            offloaded_bytes=_sum(metrics.offloaded_bytes),
        )

    def _report(self, load: EngineLoad, transfer_bytes_per_s: float) -> worker.LoadReport:
        return worker.LoadReport(
            epoch=self._board.epoch,
            running_seqs=load.running_seqs,
            waiting_seqs=load.waiting_seqs,
            waiting_prefill_tokens=load.waiting_prefill_tokens,
            free_blocks=load.free_blocks,
            total_blocks=load.total_blocks,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            decode_step_s=load.decode_step_s,
            transfer_bytes_per_s=transfer_bytes_per_s,
            pull_bytes_per_s=self._pull_bytes_per_s(),
            onboarding=[
                worker.TierSpeed(
                    tier=common.Tier.ValueType(tier), bytes_per_s=speed.bytes_per_s, latency_s=speed.latency_s
                )
                for tier, speed in self._onboarding().items()
            ],
            step_costs=None if load.step_costs is None else worker.StepCosts(**asdict(load.step_costs)),
        )


def _sum(counter: Counter) -> int:
    return int(sum(metrics.counted(counter).values()))
