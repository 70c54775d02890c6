"""Serves `armature.v1.Worker`: what a worker tells about its prefix cache and its load."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest, pack_hashes
from armature.engines.host.pulse import Pulse
from armature.engines.kv_event_log import KvEventLog
from armature.runtime.errors import CallerError
from armature.scheduling.request import EngineLoad
from armature.v1 import worker_pb2 as worker
from armature.v1 import worker_pb2_grpc
from armature.v1.common_pb2 import TIER_G1

HASHES_PER_MESSAGE = 8192
"""64 KiB."""
EVENTS_PER_MESSAGE = 1024
MIN_LOAD_INTERVAL_S = 0.01
"""Nobody decides better for hearing more than a hundred times a second."""
MAX_LOAD_INTERVAL_S = 3600.0

_KINDS = {
    KvEventKind.STORED: worker.KvEvent.KIND_STORED,
    KvEventKind.REMOVED: worker.KvEvent.KIND_REMOVED,
    KvEventKind.CLEARED: worker.KvEvent.KIND_CLEARED,
}


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

    def __init__(self, board: Board, transfer_bytes_per_s: Callable[[], float]) -> None:
        self._board = board
        self._transfer_bytes_per_s = transfer_bytes_per_s

    async def KvEvents(self, request: worker.KvEventsRequest, context: object) -> AsyncIterator[worker.KvEventBatch]:
        board, log = self._board, self._board.log
        next_seq = request.next_seq if request.epoch == board.epoch else 0
        is_first = True
        while True:
            events = log.since(next_seq) if next_seq else None
            if events is None:
                next_seq = log.next_seq
                for batch in self._dump(log.held(), next_seq):
                    yield batch
            elif events or is_first:
                events = events[:EVENTS_PER_MESSAGE]
                yield worker.KvEventBatch(epoch=board.epoch, first_seq=next_seq, events=map(_event, events))
                next_seq += len(events)
            is_first = False
            if next_seq == log.next_seq:
                await board.events_changed.wait()

    async def Load(self, request: worker.LoadRequest, context: object) -> AsyncIterator[worker.LoadReport]:
        board = self._board
        if not 0 <= request.min_interval_s <= MAX_LOAD_INTERVAL_S:  # also refuses NaN
            raise CallerError(
                f"min_interval_s is {request.min_interval_s}; it must be from 0 to {MAX_LOAD_INTERVAL_S:g}"
            )
        interval_s = max(request.min_interval_s, MIN_LOAD_INTERVAL_S)
        while True:
            told, rate = board.load, self._transfer_bytes_per_s()
            yield self._report(told, rate)
            await asyncio.sleep(interval_s)
            while board.load == told and self._transfer_bytes_per_s() == rate:
                await board.load_changed.wait()

    def _dump(self, held: Sequence[BlockDigest], next_seq: int) -> list[worker.KvEventBatch]:
        batches = [
            worker.KvEventBatch(
                epoch=self._board.epoch,
                first_seq=next_seq,
                events=[_stored(held[first : first + HASHES_PER_MESSAGE])],
                more=True,
            )
            for first in range(0, len(held), HASHES_PER_MESSAGE)
        ] or [worker.KvEventBatch(epoch=self._board.epoch, first_seq=next_seq)]
        batches[0].reset = True
        batches[-1].more = False
        return batches

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
            step_costs=None if load.step_costs is None else worker.StepCosts(**asdict(load.step_costs)),
        )


def _event(event: KvEvent) -> worker.KvEvent:
    return worker.KvEvent(kind=_KINDS[event.kind], tier=TIER_G1, sequence_hashes=pack_hashes(event.digests))


def _stored(digests: Sequence[BlockDigest]) -> worker.KvEvent:
    return worker.KvEvent(kind=worker.KvEvent.KIND_STORED, tier=TIER_G1, sequence_hashes=pack_hashes(digests))
