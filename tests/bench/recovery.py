"""What it takes until a kv-index that starts knows what all workers hold: by their dumps, or from its snapshots.

The workers' own code, all in one process, tells of blocks that nobody computed; a real Valkey keeps the snapshots. The
kv-index's part runs in this process. After the snapshot each worker stores some more, which its ring replays. Figures
are the best of several runs; CPU is of one process each. Run as a program it is the workers.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import REGISTRY

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import DIGEST_BYTES, BlockDigest
from armature.engines.host.worker_servicer import Board, WorkerServicer
from armature.runtime.channels import ChannelPool
from armature.runtime.index_followers import Followers
from armature.runtime.index_keeper import Keeper
from armature.runtime.index_snapshots import SnapshotStore
from armature.runtime.membership import MemberChange
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient
from armature.runtime.server import RpcServer
from armature.scheduling.request import EngineLoad
from armature.v1.common_pb2 import Member
from armature.v1.worker_pb2_grpc import add_WorkerServicer_to_server
from services.kv_index.book import Book
from services.kv_index.sources import Sources
from tests.support.eventually import eventually

WORKERS = 64
BLOCKS = 10_000
EVENT_BLOCKS = 20
LATER_BLOCKS = 400
RUNS = 3
PREFIX = "armature_kv_index"


class Workers:
    """The workers' process, and what it has computed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._reader, self._writer = process.stdout, process.stdin
        self.members: list[Member] = []

    async def ask(self, word: str) -> str:
        self._writer.write(f"{word}\n".encode())
        return (await self._reader.readline()).decode()

    async def cpu_s(self) -> float:
        return float(await self.ask("cpu"))


@asynccontextmanager
async def workers() -> AsyncIterator[Workers]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.recovery", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    made = Workers(process)
    addresses = json.loads(await made.ask("addresses"))
    made.members = [
        Member(id=f"w{number}", kind="decode-worker", address=address, epoch=1)
        for number, address in enumerate(addresses)
    ]
    try:
        yield made
    finally:
        process.kill()
        await process.wait()


class Index:
    """A kv-index without its membership."""

    def __init__(self, tasks: asyncio.TaskGroup, store: SnapshotStore | None) -> None:
        self.book = Book(Followers(1_000_000))
        self.channels = ChannelPool()
        self.tasks: list[asyncio.Task[None]] = []

        def spawn(work: object) -> asyncio.Task[None]:
            self.tasks.append(tasks.create_task(work))  # type: ignore[arg-type]
            return self.tasks[-1]

        self.sources = Sources(self.book, self.channels, spawn, store)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.channels.close()


def total(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"{PREFIX}_{name}", labels) or 0.0


async def recover(cell: Workers, store: SnapshotStore | None) -> dict[str, float]:
    """Learn everything, and say what that took."""
    dumps, restored = total("dumps_total"), total("recoveries_total", outcome="restored")
    async with asyncio.TaskGroup() as tasks:
        index = Index(tasks, store)
        theirs_s, ours_s, began_s = await cell.cpu_s(), time.process_time(), time.perf_counter()
        for member in cell.members:
            index.sources.on_change(MemberChange("joined", member))
        assert await index.sources.settled(120.0)
        took_s, ours_s = time.perf_counter() - began_s, time.process_time() - ours_s
        theirs_s = await cell.cpu_s() - theirs_s
        held = index.book.index.size().holdings
        await index.close()
    return {
        "wall_s": round(took_s, 3),
        "kv_index_cpu_s": round(ours_s, 3),
        "workers_cpu_s": round(theirs_s, 3),
        "dumps": total("dumps_total") - dumps,
        "restored": total("recoveries_total", outcome="restored") - restored,
        "holdings": held,
    }


async def keep(cell: Workers, store: SnapshotStore) -> dict[str, float]:
    """Learn everything and write it to Valkey, with the share of time that a service gives to it."""
    async with asyncio.TaskGroup() as tasks:
        index = Index(tasks, None)
        for member in cell.members:
            index.sources.on_change(MemberChange("joined", member))
        assert await index.sources.settled(120.0)
        before, bytes_before = total("snapshots_total", outcome="saved"), total("snapshot_bytes_total")
        keeper = Keeper(store, interval_s=3600.0, share=0.05)
        ours_s, began_s = time.process_time(), time.perf_counter()
        keeping = tasks.create_task(keeper.run(lambda: index.book.index.worker_ids, [index.sources], lambda: True))
        kept = before + len(cell.members)
        await eventually(lambda: total("snapshots_total", outcome="saved") >= kept, 120.0)
        took_s, ours_s = time.perf_counter() - began_s, time.process_time() - ours_s
        keeping.cancel()
        await index.close()
    return {
        "wall_s": round(took_s, 3),
        "cpu_ms_a_worker": round(ours_s / len(cell.members) * 1e3, 3),
        "bytes_a_block": round((total("snapshot_bytes_total") - bytes_before) / len(cell.members) / BLOCKS, 2),
    }


async def bench() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        valkey = await start_valkey(Path(folder))
        redis = RedisClient(f"redis://{valkey.address}", timeout_s=10.0)
        store = SnapshotStore(redis, "bench", "kv-index", ttl_s=600.0)
        try:
            async with workers() as cell:
                kept = await keep(cell, store)
                await cell.ask("later")
                # By turns, so that what else runs on the machine hits both.
                runs = [(await recover(cell, None), await recover(cell, store)) for _ in range(RUNS)]
        finally:
            await redis.close()
            await valkey.stop()
    dumps, snapshots = (min(some, key=lambda run: run["wall_s"]) for some in zip(*runs, strict=True))
    return {
        "workers": WORKERS, "blocks_a_worker": BLOCKS, "blocks_stored_since_the_snapshot": LATER_BLOCKS,
        "keeping": kept, "by_dumps": dumps, "from_snapshots": snapshots,
        "ratios": {
            name: round(dumps[name] / max(snapshots[name], 1e-3), 2)
            for name in ("wall_s", "kv_index_cpu_s", "workers_cpu_s")
        },
    }  # fmt: skip


def run() -> dict[str, object]:
    return asyncio.run(bench())


class Worker:
    """A board that is told of blocks."""

    def __init__(self, rng: random.Random) -> None:
        self.board = Board(1)
        self._rng = rng
        self.store(BLOCKS)

    def store(self, num_blocks: int) -> None:
        log = self.board.log
        events = [
            KvEvent(
                log.next_seq + number, KvEventKind.STORED,
                tuple(BlockDigest(self._rng.randbytes(DIGEST_BYTES)) for _ in range(EVENT_BLOCKS)),
            )
            for number in range(num_blocks // EVENT_BLOCKS)
        ]  # fmt: skip
        self.board.update(events, EngineLoad())


async def _serve() -> None:
    rng = random.Random(1)
    made = [Worker(rng) for _ in range(WORKERS)]
    servers = [RpcServer("127.0.0.1") for _ in made]
    for worker, server in zip(made, servers, strict=True):
        server.add(add_WorkerServicer_to_server, WorkerServicer(worker.board, lambda: 0.0), "armature.v1.Worker")
        await server.start()
    while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if word == "addresses":
            print(json.dumps([server.address for server in servers]), flush=True)
        elif word == "cpu":
            print(time.process_time(), flush=True)
        elif word == "later":
            for worker in made:
                worker.store(LATER_BLOCKS)
            print("stored", flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
