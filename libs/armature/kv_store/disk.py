"""Blocks in one file, by slot, beside an index that finds them again after a restart.

Plain positioned reads and writes in a few threads: through NIXL's file backend they were no quicker. The file grows as
it fills; a disk that fills up before it costs the blocks that did not fit, and nothing else.
"""

import asyncio
import errno
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from armature.kv_store.disk_index import DiskIndex, Entry, runs
from armature.kv_store.lower_store import Block, LowerStore, Problem, checksum, is_block
from armature.kv_store.tenant_names import TenantNames
from armature.offload.copies import Found

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_THREADS = 4
"""And no more than processors: more would wait for each other, and read in no order what a device likes in a row."""
_PIECE_BYTES = 4 * 1024 * 1024
"""Of one read or write, and looked at in one go: a file has one writer at a time, so others can do that meanwhile. Less
means that threads wait for each other more often than they work."""
_ALIGNMENT = 4096
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_PAUSE_S = 5.0
"""A disk that was full is not asked again for so long."""
_LOCK_TIMEOUT_S = 10.0
"""For a predecessor to be gone."""
_INDEX, _BLOCKS, _TENANTS = "index", "blocks", "tenants"


class DiskStore(LowerStore):
    """One layout's blocks in a directory of their own; see `LowerStore`.

    Raises:
        OSError: the directory can't be used, or another process uses it.
    """

    def __init__(self, directory: Path, layout: bytes, block_bytes: int, num_slots: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._block_bytes = block_bytes
        self._stride = _stride(block_bytes)
        threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="disk")
        self._index_fd = os.open(directory / _INDEX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._fd = -1
        self._tenants: TenantNames | None = None
        try:
            fcntl.flock(self._index_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._fd = os.open(directory / _BLOCKS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._tenants = TenantNames(directory / _TENANTS)
            self._index = DiskIndex(self._index_fd, self._tenants, layout, block_bytes, num_slots)
            self._discard_tail(num_slots)
        except OSError:
            self._close()
            raise
        self.discarded = self._index.discarded
        """Blocks of an earlier process that were found damaged at the start."""
        self._full_until_s = 0.0
        self._is_full = False

    def _discard_tail(self, num_slots: int) -> None:
        """Forget what the file is too short for, or we are."""
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes > num_slots * self._stride:
            os.ftruncate(self._fd, num_slots * self._stride)
        lost = [slot for slot in self._index.found() if slot * self._stride + self._block_bytes > size_bytes]
        self._index.clear(lost)
        self._index.discarded += len(lost)

    @property
    def free_bytes(self) -> int:
        """What the file system says is left."""
        found = os.fstatvfs(self._fd)
        return found.f_bavail * found.f_frsize

    async def write(self, blocks: Sequence[Block]) -> list[Problem | None]:
        """Fails with FULL without trying for a while after the disk was full."""
        if time.monotonic() < self._full_until_s:
            return [Problem.FULL] * len(blocks)
        try:
            await self._run(lambda: self._write(blocks))
        except OSError as error:
            return [self._problem(error)] * len(blocks)
        if self._is_full:
            self._is_full = False
            log.info("the disk has room again")
        return [None] * len(blocks)

    async def read(self, blocks: Sequence[Block]) -> list[Problem | None]:
        return await self._run(lambda: self._read(blocks))

    async def forget(self, digests: Sequence[bytes]) -> None:
        slots = [slot for digest in digests if (slot := self._index.slot(digest)) is not None]
        try:
            await self._run(lambda: self._index.clear(slots))
        except OSError as error:
            log.warning("the disk's index can't be written: %s", error)

    async def found(self) -> Mapping[int, Found]:
        return self._index.found()

    async def close(self) -> None:
        await asyncio.to_thread(self._executor.shutdown)
        self._close()

    def _close(self) -> None:
        self._executor.shutdown(wait=False)
        if self._tenants is not None:
            self._tenants.close()
        for fd in (self._fd, self._index_fd):
            if fd >= 0:
                os.close(fd)

    def _problem(self, error: OSError) -> Problem:
        if error.errno not in _FULL:
            log.warning("the disk can't be written: %s", error)
            return Problem.FAILED
        self._full_until_s = time.monotonic() + _FULL_PAUSE_S
        if not self._is_full:
            self._is_full = True
            log.warning("the disk is full (%s); what does not fit any more is computed again", error.strerror)
        return Problem.FULL

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    # Below, on a thread of the executor. Slots are whole pages apart, and each has one writer or its readers.

    def _write(self, blocks: Sequence[Block]) -> None:
        by_slot = {block.slot: block for block in blocks}
        self._index.clear(list(by_slot))
        checksums: dict[int, bytes] = {}
        for slots in self._pieces(list(by_slot)):
            piece = [by_slot[slot] for slot in slots]
            checksums |= {block.slot: checksum(block.data) for block in piece}
            self._write_run([block.data for block in piece], slots[0] * self._stride)
        self._index.set([Entry(block.slot, block.digest, checksums[block.slot], block.tenant) for block in blocks])

    def _write_run(self, pieces: list[memoryview], at: int) -> None:
        while pieces:
            written = os.pwritev(self._fd, pieces[:1024], at)
            at += written
            while pieces and written >= len(pieces[0]):
                written -= len(pieces.pop(0))
            if pieces and written:
                pieces[0] = pieces[0][written:]

    def _read(self, blocks: Sequence[Block]) -> list[Problem | None]:
        problems: dict[int, Problem | None] = {}
        by_slot = {block.slot: block for block in blocks}
        expected = {slot: self._index.checksum(slot, block.digest) for slot, block in by_slot.items()}
        for slots in self._pieces([slot for slot, known in expected.items() if known is not None]):
            try:
                got = os.preadv(self._fd, [by_slot[slot].data for slot in slots], slots[0] * self._stride)
            except OSError as error:
                log.warning("the disk can't be read: %s", error)
                problems |= dict.fromkeys(slots, Problem.FAILED)
                continue
            for i, slot in enumerate(slots, 1):
                is_whole = got >= i * self._block_bytes
                problems[slot] = self._judge(by_slot[slot], expected[slot]) if is_whole else Problem.DAMAGED
        return [problems.get(block.slot, Problem.MISSING) for block in blocks]

    def _pieces(self, slots: Sequence[int]) -> Iterator[range]:
        """Neighbours in one go, as a device likes it; blocks that do not fill their slots one by one."""
        width = max(1, _PIECE_BYTES // self._stride) if self._stride == self._block_bytes else 1
        for start, length in runs(slots):
            for first in range(start, start + length, width):
                yield range(first, min(first + width, start + length))

    @staticmethod
    def _judge(block: Block, expected: bytes | None) -> Problem | None:
        is_right = is_block(block.digest, block.data) and checksum(block.data) == expected
        return None if is_right else Problem.DAMAGED


def slots_in(size_bytes: int, block_bytes: int) -> int:
    """How many slots a file of this size has."""
    return size_bytes // _stride(block_bytes)


def _stride(block_bytes: int) -> int:
    return -(-block_bytes // _ALIGNMENT) * _ALIGNMENT


async def open_disk(folder: Path, layout: bytes, block_bytes: int, num_slots: int) -> DiskStore:
    """The store of a layout in `folder`, where those of other layouts that nobody uses are deleted: one has the room.

    Raises:
        OSError: it can't be used, or another process goes on using it.
    """
    own = folder / layout.hex()
    give_up_at_s = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            store = await asyncio.to_thread(DiskStore, own, layout, block_bytes, num_slots)
            break
        except BlockingIOError:
            if time.monotonic() > give_up_at_s:
                raise OSError(errno.EBUSY, "another process uses the directory", str(own)) from None
            await asyncio.sleep(0.1)
    await asyncio.to_thread(_delete_others, folder, own)
    return store


def _delete_others(folder: Path, own: Path) -> None:
    for other in folder.iterdir():
        index = other / _INDEX
        if other == own or not index.is_file() or not (other / _BLOCKS).is_file():
            continue
        with index.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            log.info("deleting blocks of another layout in %s", other)
            shutil.rmtree(other, ignore_errors=True)
