"""How quickly KV blocks come from another process: NIXL, NIXL over TCP and gRPC, beside a copy in memory.

Two real processes on loopback. Ratios to the copy of the same blocks, made in the same run, say more than rates do.
On one machine NIXL has the kernel copy between processes, page by page. `kernel` is that system call by itself, on the
same blocks and by turns with NIXL: nothing that uses it can be faster.
"""

import asyncio
import ctypes
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import pytest

from armature.engines.host.conversion import pack_tokens
from armature.engines.host.prefill_call import PrefillCall
from armature.engines.host_memory import HostBlockMemory
from armature.runtime.channels import ChannelPool
from armature.transfer.source import Source
from armature.transfer.transports import open_transports
from armature.v1.worker_pb2 import PrefillStart
from tests.support.workers import Setup, child_worker

BLOCK_BYTES = 256 * 1024
NUM_BLOCKS = 256
REPEATS = 7
VARIANTS = {"nixl": ("nixl", {}), "nixl_tcp": ("nixl", {"UCX_TLS": "tcp"}), "grpc": ("grpc", {})}


async def rate_of(read: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """(bytes/s of the median, milliseconds of the first), after a first read that is not counted."""
    started_s = time.perf_counter()
    await read()
    first_ms = (time.perf_counter() - started_s) * 1e3
    taken_s: list[float] = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        await read()
        taken_s.append(time.perf_counter() - started_s)
    return BLOCK_BYTES * NUM_BLOCKS / statistics.median(taken_s), first_ms


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("size", ctypes.c_size_t))


def kernel_copy(
    pid: int, local: int, remote: int, ids: Sequence[tuple[int, int]], block_bytes: int = BLOCK_BYTES
) -> Callable[[], None]:
    """Reads blocks (here, there) of another process's pool by one `process_vm_readv`."""
    libc, count = ctypes.CDLL(None, use_errno=True), len(ids)
    here = (_Piece * count)(*[(local + block * block_bytes, block_bytes) for block, _ in ids])
    there = (_Piece * count)(*[(remote + block * block_bytes, block_bytes) for _, block in ids])

    def copy() -> None:
        copied = libc.process_vm_readv(
            pid, here, ctypes.c_ulong(count), there, ctypes.c_ulong(count), ctypes.c_ulong(0)
        )
        if copied != count * block_bytes:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return copy


async def of_kernel(read: Callable[[], Awaitable[object]], copy: Callable[[], None]) -> dict[str, float]:
    """NIXL's best beside the system call's best; both take turns, so that other work hits both alike."""
    read_s: list[float] = []
    copy_s: list[float] = []
    for _ in range(4 * REPEATS):
        started_s = time.perf_counter()
        copy()
        between_s = time.perf_counter()
        await read()
        copy_s.append(between_s - started_s)
        read_s.append(time.perf_counter() - between_s)
    return {"kernel_gb_per_s": BLOCK_BYTES * NUM_BLOCKS / min(copy_s) / 1e9, "of_kernel": min(copy_s) / min(read_s)}


async def measure(name: str) -> dict[str, float]:
    transport, env = VARIANTS[name]
    setup = Setup(
        role="prefill", transport=transport, block_bytes=BLOCK_BYTES, num_blocks=NUM_BLOCKS + 2,
        max_num_batched_tokens=NUM_BLOCKS * 16,
    )  # fmt: skip
    memory, channels = HostBlockMemory(NUM_BLOCKS + 2, BLOCK_BYTES), ChannelPool()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in env.items():
            patch.setenv(key, value)
        async with child_worker(setup) as far, asyncio.TaskGroup() as tasks:
            transports = await open_transports(
                transport, memory, channels=channels, spawn=tasks.create_task, host="127.0.0.1", read_timeout_s=30
            )
            call = PrefillCall(channels.get(far.address), 60)
            start = PrefillStart(
                request_id="bench", model="m", token_ids=pack_tokens([1] * (NUM_BLOCKS * 16 + 1)),
                transport=transport, kv_fingerprint=far.fingerprint,
            )  # fmt: skip
            source = Source.of(far.address, await call.start(start, 10))
            staged = (await call.update(10)).blocks
            local_ids, remote_ids = list(range(1, NUM_BLOCKS + 1)), list(staged.block_ids)
            chosen = transports.choose(source)
            bytes_per_s, first_ms = await rate_of(lambda: chosen.read(source, local_ids, remote_ids))
            assert memory.digests(local_ids[:1])[0] == staged.digests[:16]
            floor: dict[str, float] = {}
            if name == "nixl":
                pairs = list(zip(local_ids, remote_ids, strict=True))
                copy = kernel_copy(far.process.pid, memory.base_address, source.region.base_address, pairs)
                floor = await of_kernel(lambda: chosen.read(source, local_ids, remote_ids), copy)
            one = await one_block_ms(lambda: chosen.read(source, local_ids[:1], remote_ids[:1]))
            await call.close()
            await transports.close()
    await channels.close()
    return {"gb_per_s": bytes_per_s / 1e9, "first_read_ms": first_ms, "one_block_ms": one, **floor}


async def one_block_ms(read: Callable[[], Awaitable[object]]) -> float:
    taken_s: list[float] = []
    for _ in range(20):
        started_s = time.perf_counter()
        await read()
        taken_s.append(time.perf_counter() - started_s)
    return statistics.median(taken_s) * 1e3


async def copy_rate() -> float:
    """Bytes per second of copying as many blocks, one by one and from anywhere, within this process."""
    source = np.ones((NUM_BLOCKS, BLOCK_BYTES), np.uint8)
    target = np.zeros_like(source)
    pairs = list(enumerate(np.random.default_rng(0).permutation(NUM_BLOCKS).tolist()))

    async def copy() -> None:
        for here, there in pairs:
            target[here] = source[there]

    return (await rate_of(copy))[0]


async def _run() -> dict[str, Any]:
    copies, measured = [await copy_rate()], dict[str, dict[str, float]]()
    for name in VARIANTS:
        measured[name] = await measure(name)
        copies.append(await copy_rate())  # the machine may be busier than at the start
    memcpy = statistics.median(copies) / 1e9
    found: dict[str, Any] = {"blocks": NUM_BLOCKS, "block_bytes": BLOCK_BYTES, "memcpy_gb_per_s": round(memcpy, 2)}
    for name, values in measured.items():
        values["of_memcpy"] = values["gb_per_s"] / memcpy
        found[name] = {key: round(value, 3) for key, value in values.items()}
    return found


def run() -> dict[str, Any]:
    """Measure everything; takes about ten seconds."""
    return asyncio.run(_run())


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
