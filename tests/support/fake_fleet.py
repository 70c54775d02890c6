"""Fakes of workers, hundreds in one process, for whoever only listens to workers: kv-index and routers.

They are in etcd and stream loads and KV events like workers, and compute nothing: nobody may send them requests. What
they hold are beginnings of prompts (`prompts`) that the listeners' clients can ask for.

    python -m tests.support.fake_fleet --etcd 127.0.0.1:2379 --namespace x --workers 64
"""

import argparse
import asyncio
import json
import random
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import uvloop

from armature.index.packing import pack_hashes
from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import member_key
from armature.runtime.server import RpcServer
from armature.runtime.session import Session
from armature.v1 import worker_pb2 as pb
from armature.v1 import worker_pb2_grpc
from armature.v1.common_pb2 import MEMBER_STATE_READY, ROLE_AGGREGATED, TIER_G1, Member, ModelCard, WorkerInfo

SAMPLE = Path(__file__).parents[1] / "data" / "mooncake_conversation_200.jsonl"
BLOCK_SIZE, BLOCKS_PER_CONTENT = 64, 8
NUM_BLOCKS = 4_000
MESSAGE_BLOCKS = 8192


def prompts(copies: int) -> list[list[int]]:
    """Sequence hashes of the sample's prompts in blocks of 64 tokens, so many times with other contents.

    Prompts of a copy share beginnings as the sample's do; those of different copies share nothing.
    """
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    found: list[list[int]] = []
    for copy in range(copies):
        for line in lines:
            hashes: list[int] = []
            for content in line["hash_ids"]:
                digest = blake2b(f"{copy}/{content}".encode(), digest_size=8 * BLOCKS_PER_CONTENT).digest()
                hashes += [int.from_bytes(digest[at : at + 8], "little") for at in range(0, len(digest), 8)]
            found.append(hashes[: line["input_length"] // BLOCK_SIZE])
    return [hashes for hashes in found if hashes]


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """Holds about as many blocks as it has room for; every change is an event."""

    def __init__(self, number: int, fleet: str) -> None:
        self.worker_id = f"{fleet}-{number:03}"
        self.server = RpcServer("127.0.0.1")
        self.server.add(worker_pb2_grpc.add_WorkerServicer_to_server, self, "armature.v1.Worker")
        self._held: dict[int, None] = {}
        self._next_seq = 1
        self._listeners: dict[int, deque[pb.KvEvent]] = {}
        self._changed = asyncio.Event()
        self._load = pb.LoadReport()

    def store(self, hashes: list[int]) -> None:
        """Hold a prompt's blocks; the oldest go if there is no room."""
        new = [block for block in hashes if block not in self._held]
        self._held.update(dict.fromkeys(hashes))
        gone = [block for block, _ in zip(self._held, range(len(self._held) - NUM_BLOCKS), strict=False)]
        for block in gone:
            del self._held[block]
        for kind, blocks in ((pb.KvEvent.KIND_STORED, new), (pb.KvEvent.KIND_REMOVED, gone)):
            if blocks:
                self._next_seq += 1
                event = pb.KvEvent(kind=kind, tier=TIER_G1, sequence_hashes=pack_hashes(blocks))
                for waiting in self._listeners.values():
                    waiting.append(event)
        self._wake()

    def report(self, rng: random.Random) -> None:
        """Another load than before."""
        self._load = pb.LoadReport(
            epoch=1, running_seqs=rng.randrange(5, 40), waiting_seqs=rng.randrange(2), free_blocks=NUM_BLOCKS // 2,
            waiting_prefill_tokens=rng.randrange(8000), total_blocks=NUM_BLOCKS,
            prefill_tokens_per_s=20_000 * rng.uniform(0.95, 1.05), decode_step_s=0.02,
        )  # fmt: skip
        self._wake()

    @property
    def is_full(self) -> bool:
        return len(self._held) >= NUM_BLOCKS * 0.9

    @property
    def member(self) -> Member:
        card = ModelCard(name="m", block_size=BLOCK_SIZE, block_bytes=BLOCK_SIZE * 262_144, context_length=1 << 20)
        info = WorkerInfo(
            role=ROLE_AGGREGATED, model=card, num_blocks=NUM_BLOCKS, max_num_seqs=256, max_num_batched_tokens=8192
        )
        return Member(
            id=self.worker_id, kind="decode-worker", address=self.server.address, epoch=1, state=MEMBER_STATE_READY,
            worker=info,
        )  # fmt: skip

    async def KvEvents(self, request: pb.KvEventsRequest, context: Any) -> AsyncIterator[pb.KvEventBatch]:
        waiting = self._listeners[id(context)] = deque()
        next_seq, held = self._next_seq, list(self._held)
        try:
            starts = range(0, max(1, len(held)), MESSAGE_BLOCKS)
            for start in starts:
                event = pb.KvEvent(
                    kind=pb.KvEvent.KIND_STORED, tier=TIER_G1,
                    sequence_hashes=pack_hashes(held[start : start + MESSAGE_BLOCKS]),
                )  # fmt: skip
                is_last = start == starts[-1]
                yield pb.KvEventBatch(epoch=1, first_seq=next_seq, events=[event], reset=not start, more=not is_last)
            while True:
                events = list(waiting)
                waiting.clear()
                if events:
                    yield pb.KvEventBatch(epoch=1, first_seq=next_seq, events=events)
                    next_seq += len(events)
                else:
                    await self._changed.wait()
        finally:
            del self._listeners[id(context)]

    async def Load(self, request: pb.LoadRequest, context: Any) -> AsyncIterator[pb.LoadReport]:
        while True:
            told = self._load
            yield told
            await asyncio.sleep(request.min_interval_s)
            while self._load is told:
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


async def churn(workers: list[FakeWorker], rng: random.Random, asked: list[list[int]], prompts_per_s: float) -> None:
    """Have prompts computed here and there, and every worker's load change ten times a second."""
    loop = asyncio.get_running_loop()
    next_s = loop.time()
    while True:
        for worker in workers:
            worker.report(rng)
        for _ in range(round(prompts_per_s / 10)):
            rng.choice(workers).store(rng.choice(asked))
        next_s += 0.1
        await asyncio.sleep(max(0.0, next_s - loop.time()))


async def serve(args: argparse.Namespace) -> None:
    rng, asked = random.Random(args.seed), prompts(args.copies)
    workers = [FakeWorker(number, "fake") for number in range(args.workers)]
    client = EtcdClient([args.etcd], timeout_s=10.0)
    session, stopped = Session(client), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        stack.push_async_callback(client.close)
        running = [tasks.create_task(session.run())]
        for worker in workers:
            while not worker.is_full:
                worker.store(rng.choice(asked))
            worker.report(rng)
            await worker.server.start()
            stack.push_async_callback(worker.server.stop, 0)
            member = worker.member
            await session.put(member_key(args.namespace, member.kind, member.id), member.SerializeToString())
        running.append(tasks.create_task(churn(workers, rng, asked, args.prompts_per_s)))
        print("READY fake-fleet fake grpc=-", flush=True)
        await stopped.wait()
        await session.close()
        for task in running:
            task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--etcd", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--prompts-per-s", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
