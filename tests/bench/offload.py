"""How quickly blocks go to a kv-offload and come back, beside a copy in memory; and its disk store beside plain files.

The kv-offload is a process of its own; this one is the worker. Times hold everything: the call, the policy, NIXL, the
comparison of every digest. What is compared takes turns in one run; `of_...` are ratios of the best times and of the
medians. `kernel` is the system call that NIXL uses on one machine by itself: nothing that reads another process's
memory can be faster.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from armature.kv_store.disk import DiskStore, open_disk
from armature.kv_store.lower_store import Block
from armature.runtime.runtime import settle_collector
from armature.transfer.source import Source
from armature.v1 import kv_offload_pb2 as pb
from tests.bench.transfer import kernel_copy
from tests.support.offloading import FINGERPRINT, Tiers, WorkerMemory, content, digest, node, packed, worker_memory

BLOCK_BYTES = 256 * 1024
NUM_BLOCKS = 256
ROUNDS = 12
DISK_BATCH = 16
"""Blocks of one write: what a kv-offload copies at a time."""
DISK_THREADS = 4
Work = Callable[[], Awaitable[object]]


async def by_turns(works: Mapping[str, Work], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each, after a first round that is not counted."""
    taken_s: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            started_s = time.perf_counter()
            await work()
            if round_:
                taken_s[name].append(time.perf_counter() - started_s)
    return taken_s


def compared(taken_s: Mapping[str, list[float]], size_bytes: int, base: str) -> dict[str, Any]:
    """Rates, and each as a multiple of `base`: best to best, and median to median."""
    found: dict[str, Any] = {}
    for name, times in taken_s.items():
        found[name] = {"gb_per_s": round(size_bytes / min(times) / 1e9, 2)}
        if name != base:
            found[name][f"of_{base}"] = round(min(taken_s[base]) / min(times), 2)
            medians = statistics.median(taken_s[base]) / statistics.median(times)
            found[name][f"of_{base}_median"] = round(medians, 2)
    return found


async def onboard(worker: WorkerMemory) -> None:
    """Read all blocks back into the pool's second half."""
    call = worker.stub.Onboard(pb.OnboardRequest(layout=worker.layout, digests=packed(range(NUM_BLOCKS))), timeout=60)
    start = (await call.read()).start
    source, remote, came = Source.of("", start.source), list(start.block_ids), 0
    while remote:
        local = list(range(NUM_BLOCKS + came, NUM_BLOCKS + came + len(remote)))
        await worker.transports.choose(source).read(source, local, remote)
        assert worker.memory.digests(local) == [digest(came + i) for i in range(len(remote))]
        came += len(remote)
        remote = list((await call.read()).ready.block_ids) if came < NUM_BLOCKS else []
    call.cancel()
    assert came == NUM_BLOCKS


async def host_memory() -> dict[str, Any]:
    """Between a worker's pool and host memory, both ways."""
    command = [sys.executable, "-m", "tests.bench.offload", "serve"]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        told = json.loads(await child.stdout.readline())
        async with worker_memory(told["address"], "nixl", 2 * NUM_BLOCKS, BLOCK_BYTES) as worker:
            return await _measure_host(worker, child.pid, told["base_address"])
    finally:
        child.kill()
        await child.wait()


async def _measure_host(worker: WorkerMemory, pid: int, base_address: int) -> dict[str, Any]:
    numbers = range(NUM_BLOCKS)
    worker.hold(numbers)
    pairs = list(zip(range(NUM_BLOCKS, 2 * NUM_BLOCKS), numbers, strict=True))
    kernel_read = kernel_copy(pid, worker.memory.base_address, base_address, pairs)
    own, other = np.ones((NUM_BLOCKS, BLOCK_BYTES), np.uint8), np.zeros((NUM_BLOCKS, BLOCK_BYTES), np.uint8)
    order = np.random.default_rng(0).permutation(NUM_BLOCKS).tolist()
    offload_s: list[float] = []

    async def offload() -> None:
        await worker.stub.Evict(pb.EvictRequest(layout=worker.layout, all=True), timeout=30)
        started_s = time.perf_counter()
        assert await worker.offload(numbers) == ["taken"] * NUM_BLOCKS
        offload_s.append(time.perf_counter() - started_s)

    async def memcpy() -> None:
        for here, there in enumerate(order):
            other[here] = own[there]

    async def kernel() -> None:
        kernel_read()

    works: dict[str, Work] = {
        "memcpy": memcpy, "kernel": kernel, "offload": offload, "onboard": lambda: onboard(worker),
    }  # fmt: skip
    taken_s = await by_turns(works)
    taken_s["offload"] = offload_s[1:]
    return compared(taken_s, NUM_BLOCKS * BLOCK_BYTES, "memcpy")


class Disk:
    """The store, and a plain file of the same blocks, written and read in the same batches."""

    def __init__(self, store: DiskStore, folder: Path) -> None:
        self.store = store
        self.held = [memoryview(bytearray(content(number, BLOCK_BYTES))) for number in range(NUM_BLOCKS)]
        self.room = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(NUM_BLOCKS)]
        self.files = [os.open(folder / "plain", os.O_RDWR | os.O_CREAT, 0o600)]
        self.files += [os.open(path, os.O_RDWR) for path in folder.rglob("blocks")]
        self.threads = ThreadPoolExecutor(DISK_THREADS)

    async def store_write(self, batch: range) -> None:
        problems = await self.store.write([Block(digest(i), i, self.held[i]) for i in batch])
        assert not any(problems)

    async def store_read(self, batch: range) -> None:
        assert not any(await self.store.read([Block(digest(i), i, self.room[i]) for i in batch]))

    async def plain_write(self, batch: range) -> None:
        await self._run(lambda: os.pwritev(self.files[0], [self.held[i] for i in batch], batch[0] * BLOCK_BYTES))

    async def plain_read(self, batch: range) -> None:
        await self._run(lambda: os.preadv(self.files[0], [self.room[i] for i in batch], batch[0] * BLOCK_BYTES))

    async def sync(self, file: int) -> None:
        await self._run(lambda: os.fdatasync(self.files[file]))

    def drop(self, file: int) -> None:
        """Have the next read come from the device."""
        os.posix_fadvise(self.files[file], 0, 0, os.POSIX_FADV_DONTNEED)

    async def _run(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self.threads, work)


async def lanes(one: Callable[[range], Awaitable[object]], count: int = DISK_THREADS) -> None:
    """All batches, so many at a time."""
    waiting = [range(first, first + DISK_BATCH) for first in range(NUM_BLOCKS - DISK_BATCH, -1, -DISK_BATCH)]

    async def lane() -> None:
        while waiting:
            await one(waiting.pop())

    await asyncio.gather(*[lane() for _ in range(count)])


async def disk() -> dict[str, Any]:
    """The store beside plain file I/O, by one thread and by as many as the store has; in memory and to the device."""
    size_bytes = NUM_BLOCKS * BLOCK_BYTES
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = await open_disk(Path(folder) / "store", FINGERPRINT, BLOCK_BYTES, NUM_BLOCKS)
        io = Disk(store, Path(folder))

        def cached(move: str) -> dict[str, Work]:
            plain, stored = getattr(io, f"plain_{move}"), getattr(io, f"store_{move}")
            return {
                "plain": lambda: lanes(plain, 1),
                "plain_threads": lambda: lanes(plain),
                "store": lambda: lanes(stored),
            }

        def device(move: str) -> dict[str, Work]:
            async def run(work: Work, file: int) -> None:
                if move == "read":
                    io.drop(file)
                await work()
                if move == "write":
                    await io.sync(file)

            files = {"plain": 0, "plain_threads": 0, "store": 1}
            return {name: lambda n=name, w=work: run(w, files[n]) for name, work in cached(move).items()}

        found: dict[str, Any] = {}
        for move in ("write", "read"):
            found[move] = compared(await by_turns(cached(move)), size_bytes, "plain")
            found[f"{move}_device"] = compared(await by_turns(device(move), 8), size_bytes, "plain")
        await store.close()
    return found


async def _run() -> dict[str, Any]:
    found: dict[str, Any] = {"blocks": NUM_BLOCKS, "block_bytes": BLOCK_BYTES, "load": os.getloadavg()[0]}
    return found | {"host_memory": await host_memory(), "disk": await disk()}


def run() -> dict[str, Any]:
    """Measure everything; takes about ten seconds."""
    return asyncio.run(_run())


async def _serve() -> None:
    tiers = Tiers(host=2 * NUM_BLOCKS, transport="nixl", block_bytes=BLOCK_BYTES)
    async with node(tiers) as here:
        settle_collector()  # as every service does
        told = {"address": here.address, "base_address": here.store.pool.base_address}
        print(json.dumps(told), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(_serve())
    else:
        print(json.dumps(run(), indent=2))
