"""Workers and kv-offloads that hold what a test tells them to: real contracts on real servers, no engine behind."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from armature.index.packing import pack_hashes
from armature.runtime.server import RpcServer
from armature.v1 import kv_offload_pb2_grpc, worker_pb2_grpc
from armature.v1 import worker_pb2 as pb
from armature.v1.common_pb2 import (
    MEMBER_STATE_READY,
    ROLE_DECODE,
    ROLE_PREFILL,
    TIER_G1,
    KvLayout,
    Member,
    ModelCard,
    OffloadInfo,
    Tier,
    WorkerInfo,
)

DUMP_BLOCKS = 4
"""Blocks in a dump's message: few, so that most dumps take several."""


class ScriptedWorker(worker_pb2_grpc.WorkerServicer, kv_offload_pb2_grpc.KvOffloadServicer):
    """Every change is an event; the last `ring` events can be asked for again."""

    def __init__(self, worker_id: str = "w1", *, epoch: int = 1, ring: int = 8, role: str = "decode") -> None:
        self.worker_id = worker_id
        self.role = role
        self.epoch = epoch
        self.ring = ring
        self.has_events = True
        self.node = ""
        self.held: dict[int, Tier.ValueType] = {}
        """Blocks, each in one tier."""
        self.asked: list[tuple[int, int]] = []
        """Epoch and sequence number of every KvEvents call."""
        self.load = pb.LoadReport(free_blocks=1000, total_blocks=1000)
        self.streams = 0
        self.address = ""
        self._events: list[pb.KvEvent] = []
        self._delivered = 0
        self._changed = asyncio.Event()
        self._break = asyncio.Event()
        self._server: RpcServer | None = None

    async def start(self) -> None:
        """Listen, at the same address as before if there was one."""
        self._server = RpcServer("127.0.0.1", int(self.address.rpartition(":")[2] or 0))
        if self.role == "offload":
            self._server.add(kv_offload_pb2_grpc.add_KvOffloadServicer_to_server, self, "armature.v1.KvOffload")
        else:
            self._server.add(worker_pb2_grpc.add_WorkerServicer_to_server, self, "armature.v1.Worker")
        await self._server.start()
        self.address = self._server.address

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def restart(self) -> None:
        """Another process at the same address: a new epoch, an empty pool."""
        await self.stop()
        self.epoch += 1
        self.held.clear()
        self._events.clear()
        self._delivered = 0
        await self.start()

    @property
    def member(self) -> Member:
        if self.role == "offload":
            return Member(
                id=self.worker_id, kind="kv-offload", address=self.address, epoch=self.epoch, node=self.node,
                state=MEMBER_STATE_READY, offload=OffloadInfo(layout=KvLayout(kv_fingerprint=b"same")),
            )  # fmt: skip
        info = WorkerInfo(
            role=ROLE_PREFILL if self.role == "prefill" else ROLE_DECODE,
            model=ModelCard(name="m", block_size=10, block_bytes=1000),
            num_blocks=1000, max_num_seqs=16, max_num_batched_tokens=512, kv_fingerprint=b"same",
            lacks_kv_events=not self.has_events,
        )  # fmt: skip
        return Member(
            id=self.worker_id, kind=f"{self.role}-worker", address=self.address, epoch=self.epoch,
            state=MEMBER_STATE_READY, worker=info, node=self.node,
        )  # fmt: skip

    def store(self, hashes: Iterable[int], *, lost: bool = False, tier: "Tier.ValueType" = TIER_G1) -> None:
        """Hold more blocks. `lost`: the event never leaves on streams that are open, as after a bug or a full queue."""
        stored = list(hashes)
        self.held.update(dict.fromkeys(stored, tier))
        self._happen(pb.KvEvent.KIND_STORED, stored, lost, tier)

    def remove(self, hashes: Iterable[int], *, lost: bool = False) -> None:
        removed = list(hashes)
        (tier,) = {self.held.pop(block, TIER_G1) for block in removed}
        self._happen(pb.KvEvent.KIND_REMOVED, removed, lost, tier)

    def clear(self) -> None:
        self.held.clear()
        self._happen(pb.KvEvent.KIND_CLEARED, [], False)

    def break_streams(self) -> None:
        """End all open calls with an error; new ones are answered."""
        self._break.set()
        self._break = asyncio.Event()
        self._wake()

    def report(self, **load: Any) -> None:
        self.load = pb.LoadReport(free_blocks=1000, total_blocks=1000)
        self.load.MergeFrom(pb.LoadReport(**load))
        self._wake()

    @property
    def next_seq(self) -> int:
        return len(self._events) + 1

    async def KvEvents(self, request: pb.KvEventsRequest, context: Any) -> AsyncIterator[pb.KvEventBatch]:
        self.asked.append((request.epoch, request.next_seq))
        broken = self._break
        next_seq = request.next_seq
        if request.epoch != self.epoch or not self.next_seq - self.ring <= next_seq <= self.next_seq:
            next_seq = self.next_seq
            for batch in self._dump():
                yield batch
        else:
            first_seq, next_seq = next_seq, self.next_seq
            yield pb.KvEventBatch(epoch=self.epoch, first_seq=first_seq, events=self._events[first_seq - 1 :])
        self.streams += 1
        try:
            while not broken.is_set():
                next_seq = max(next_seq, self._delivered + 1)
                if next_seq < self.next_seq:
                    first_seq, next_seq = next_seq, self.next_seq
                    yield pb.KvEventBatch(epoch=self.epoch, first_seq=first_seq, events=self._events[first_seq - 1 :])
                else:
                    await self._change()
        finally:
            self.streams -= 1
        raise ConnectionError("broken by the test")

    async def Load(self, request: pb.LoadRequest, context: Any) -> AsyncIterator[pb.LoadReport]:
        broken, told = self._break, None
        while not broken.is_set():
            if told is not self.load:
                told = self.load
                yield told
            else:
                await self._change()
        raise ConnectionError("broken by the test")

    def _dump(self) -> list[pb.KvEventBatch]:
        tiers: dict[Tier.ValueType, list[int]] = {}
        for block, tier in self.held.items():
            tiers.setdefault(tier, []).append(block)
        events = [
            _event(pb.KvEvent.KIND_STORED, held[start : start + DUMP_BLOCKS], tier)
            for tier, held in tiers.items()
            for start in range(0, len(held), DUMP_BLOCKS)
        ]
        batches = [pb.KvEventBatch(epoch=self.epoch, first_seq=self.next_seq, events=[event]) for event in events] or [
            pb.KvEventBatch(epoch=self.epoch, first_seq=self.next_seq)
        ]
        for batch in batches:
            batch.more = batch is not batches[-1]
        batches[0].reset = True
        return batches

    def _happen(
        self, kind: "pb.KvEvent.Kind.ValueType", hashes: list[int], lost: bool, tier: "Tier.ValueType" = TIER_G1
    ) -> None:
        self._events.append(_event(kind, hashes, tier))
        if lost:
            self._delivered = len(self._events)
        else:
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


def _event(kind: "pb.KvEvent.Kind.ValueType", hashes: list[int], tier: "Tier.ValueType") -> pb.KvEvent:
    return pb.KvEvent(kind=kind, tier=tier, sequence_hashes=pack_hashes(hashes))


@asynccontextmanager
async def scripted_workers(*ids: str, **changes: Any) -> AsyncIterator[list[ScriptedWorker]]:
    """Started workers, stopped at the end; ids that begin with `p` are prefill workers, with `o` kv-offloads."""
    roles = {"p": "prefill", "o": "offload"}
    workers = [ScriptedWorker(worker_id, role=roles.get(worker_id[0], "decode"), **changes) for worker_id in ids]
    try:
        for worker in workers:
            await worker.start()
        yield workers
    finally:
        for worker in workers:
            await worker.stop()
