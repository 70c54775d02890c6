"""How quickly blocks go to a kv-offload and come back, beside a copy in memory; and its disk store beside plain files.

The kv-offload is a process of its own; this one is the worker. Times hold everything: the call, the policy, NIXL, the
comparison of every digest. What is compared takes turns in one run; `of_...` are ratios of the best times and of the
medians. `kernel` is the system call that NIXL uses on one machine by itself, on one thread, as the copy is (`memcpy`);
large reads are shared by two. `offload` and `onboard` are one request at a time; `offload_stream` is several, two of
them under way at any time, as two workers of a node have.
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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from armature.kv_store.disk import DiskStore, open_disk
from armature.kv_store.lower_store import Block
from armature.runtime.runtime import settle_collector
from armature.transfer.source import Source
from armature.v1 import kv_offload_pb2 as pb
from tests.bench.transfer import kernel_copy
from tests.support.offloading import FINGERPRINT, Tiers, WorkerMemory, content, digest, node, worker_memory

BLOCK_BYTES = 256 * 1024
NUM_BLOCKS = 256
LARGE_BLOCK_BYTES = 5 * 1024 * 1024
"""Of 16 tokens of a model with 70 billion parameters."""
NUM_LARGE_BLOCKS = 24
ROUNDS = 12
DISK_BATCH = 16
"""Blocks of one write: what a kv-offload copies at a time."""
DISK_THREADS = 4
Work = Callable[[], Awaitable[object]]


async def by_turns(
    works: Mapping[str, Work], rounds: int = ROUNDS, *, is_rotating: bool = False
) -> dict[str, list[float]]:
    """Seconds of each, after a first round that is not counted; `is_rotating`: each round begins with another."""
    taken_s: dict[str, list[float]] = {name: [] for name in works}
    ordered = list(works.items())
    for round_ in range(rounds + 1):
        first = round_ % len(ordered) if is_rotating else 0
        for name, work in ordered[first:] + ordered[:first]:
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


@dataclass(frozen=True)
class Prompts:
    """What a worker offers and wants back: so many requests, each for as many blocks."""

    block_bytes: int
    num_blocks: int
    requests: int = 4

    @property
    def size_bytes(self) -> int:
        """Of one request."""
        return self.num_blocks * self.block_bytes

    @cached_property
    def digests(self) -> list[list[bytes]]:
        """As a worker has them, by request."""
        return [list(map(digest, self.numbers(number))) for number in range(self.requests)]

    def numbers(self, request: int) -> range:
        return range(request * self.num_blocks, (request + 1) * self.num_blocks)

    @property
    def landing(self) -> range:
        """Blocks of the worker's pool that it reads into."""
        return self.numbers(self.requests)


class HostBench:
    """A worker beside a kv-offload that has room for all that it offers."""

    def __init__(self, worker: WorkerMemory, prompts: Prompts) -> None:
        self.worker = worker
        self.prompts = prompts
        worker.hold(range(prompts.requests * prompts.num_blocks))

    async def forget(self) -> None:
        await self.worker.stub.Evict(pb.EvictRequest(layout=self.worker.layout, all=True), timeout=30)

    async def offload(self, number: int = 0) -> None:
        digests, worker = self.prompts.digests[number], self.worker
        assert await worker.offer(digests, self.prompts.numbers(number)) == ["taken"] * len(digests)

    async def offload_stream(self, at_once: int = 2) -> None:
        """All requests, so many at a time."""
        waiting = list(range(self.prompts.requests))

        async def lane() -> None:
            while waiting:
                await self.offload(waiting.pop())

        await asyncio.gather(*[lane() for _ in range(at_once)])

    async def onboard(self) -> None:
        """Read the first request's blocks back into the pool's last ones."""
        worker, digests, landing = self.worker, self.prompts.digests[0], self.prompts.landing
        request = pb.OnboardRequest(layout=worker.layout, digests=b"".join(digests))
        call = worker.stub.Onboard(request, timeout=60)
        start = (await call.read()).start
        source, remote, came = Source.of("", start.source), list(start.block_ids), 0
        while remote:
            local = list(landing[came : came + len(remote)])
            await worker.transports.choose(source).read(source, local, remote)
            assert worker.memory.digests(local) == digests[came : came + len(remote)]
            came += len(remote)
            remote = list((await call.read()).ready.block_ids) if came < len(digests) else []
        call.cancel()
        assert came == len(digests)


async def host_memory(prompts: Prompts) -> dict[str, Any]:
    """Between a worker's pool and host memory, both ways."""
    sizes = [str(prompts.block_bytes), str((prompts.requests + 1) * prompts.num_blocks)]
    command = [sys.executable, "-m", "tests.bench.offload", "serve", *sizes]
    child = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        told = json.loads(await child.stdout.readline())
        async with worker_memory(told["address"], "nixl", int(sizes[1]), prompts.block_bytes) as worker:
            return await _measure_host(HostBench(worker, prompts), child.pid, told["base_address"])
    finally:
        child.kill()
        await child.wait()


async def _measure_host(bench: HostBench, pid: int, base_address: int) -> dict[str, Any]:
    prompts, count = bench.prompts, bench.prompts.num_blocks
    pairs = list(zip(prompts.landing, prompts.numbers(0), strict=True))
    kernel_read = kernel_copy(pid, bench.worker.memory.base_address, base_address, pairs, prompts.block_bytes)
    own, other = np.ones((count, prompts.block_bytes), np.uint8), np.zeros((count, prompts.block_bytes), np.uint8)
    order = np.random.default_rng(0).permutation(count).tolist()
    stream_s: list[float] = []

    async def memcpy() -> None:
        for here, there in enumerate(order):
            other[here] = own[there]

    async def kernel() -> None:
        kernel_read()

    async def stream() -> None:
        started_s = time.perf_counter()
        await bench.offload_stream()
        stream_s.append((time.perf_counter() - started_s) / prompts.requests)

    works: dict[str, Work] = {
        "memcpy": memcpy, "kernel": kernel, "evict": bench.forget, "offload": bench.offload, "onboard": bench.onboard,
        "evict_again": bench.forget, "offload_stream": stream, "evict_stream": bench.forget,
    }  # fmt: skip
    taken_s = await by_turns(works)
    taken_s["offload_stream"] = stream_s[1:]
    kept = {name: taken_s[name] for name in ("memcpy", "kernel", "offload", "offload_stream", "onboard")}
    return compared(kept, prompts.size_bytes, "memcpy")


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
            for name, works in ((move, cached(move)), (f"{move}_device", device(move))):
                found[name] = compared(await by_turns(works, is_rotating=True), size_bytes, "plain")
        await store.close()
    return found


async def _run() -> dict[str, Any]:
    found: dict[str, Any] = {"load": os.getloadavg()[0], "disk_blocks": NUM_BLOCKS, "disk_block_bytes": BLOCK_BYTES}
    for prompts in (Prompts(BLOCK_BYTES, NUM_BLOCKS), Prompts(LARGE_BLOCK_BYTES, NUM_LARGE_BLOCKS)):
        name = f"host_memory_{prompts.num_blocks}_blocks_of_{prompts.block_bytes >> 10}_kib"
        found[name] = await host_memory(prompts)
    return found | {"disk": await disk()}


def run() -> dict[str, Any]:
    """Measure everything; takes about ten seconds."""
    return asyncio.run(_run())


async def _serve(block_bytes: int, num_blocks: int) -> None:
    async with node(Tiers(host=num_blocks, transport="nixl", block_bytes=block_bytes)) as here:
        settle_collector()  # as every service does
        told = {"address": here.address, "base_address": here.store.pool.base_address}
        print(json.dumps(told), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(_serve(*map(int, sys.argv[2:])))
    else:
        print(json.dumps(run(), indent=2))
