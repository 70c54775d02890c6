"""Blocks in a bucket, each node's in a folder of its own: only its node writes and deletes there, others may read.

Nothing in a bucket goes by itself. A block that the tiers let go of is deleted in the background; what nobody counts
on, since its process or machine is gone, goes when it is old, whosever it was.
"""

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from prometheus_client import Counter

from armature.kv_store.lower_store import CHECKSUM_BYTES, Adopt, Block, LowerStore, Problem, checksum, is_block
from armature.offload.copies import Found
from armature.runtime.pulse import Pulse
from armature.runtime.s3_client import DELETES_AT_ONCE, Listed, S3Client, S3UnavailableError

log = logging.getLogger(__name__)

_AT_ONCE = 32
"""Each waits tens of milliseconds for the store, mostly."""
_MAX_UNWANTED = 1 << 16
"""Objects that wait to be deleted; beyond them the oldest are left until their time is over."""
_LONGEST_SURVEY_INTERVAL_S = 3600.0
_RETRY_S = 1.0

_deleted = Counter("armature_s3_deleted_objects_total", "Objects deleted: let go by the tiers, or old.", ["reason"])


class Layout(NamedTuple):
    """What blocks are like, and whose they are."""

    namespace: str
    fingerprint: bytes
    block_bytes: int
    node: str


class S3BlockStore(LowerStore):
    """Blocks of one layout; see `LowerStore`. Objects are the bytes, then their checksum."""

    def __init__(self, client: S3Client, layout: Layout, *, ttl_s: float) -> None:
        self._client = client
        self._root = f"armature/{layout.namespace}/kv"
        self._layout = f"{self._root}/{layout.fingerprint.hex()}"
        self._own = f"{self._layout}/{_folder(layout.node)}"
        self._object_bytes = layout.block_bytes + CHECKSUM_BYTES
        self._ttl_s = ttl_s
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._num_adopted = 0
        self._others: dict[bytes, str] = {}
        """Where blocks are that another node has written."""
        self._unwanted: dict[str, None] = {}
        self._deleting: frozenset[str] = frozenset()
        self._one_delete = asyncio.Lock()
        self._news = Pulse()
        """Fires when something is unwanted, and when it was deleted."""

    async def write(self, blocks: Sequence[Block]) -> list[Problem | None]:
        return await asyncio.gather(*[self._write(block) for block in blocks])

    async def read(self, blocks: Sequence[Block]) -> list[Problem | None]:
        return await asyncio.gather(*[self._read(block) for block in blocks])

    async def forget(self, digests: Sequence[bytes]) -> None:
        """This node's; another's stay for it. Those that it can't delete now go later."""
        self.let_go(digests)
        with contextlib.suppress(S3UnavailableError):
            while self._unwanted:
                await self._delete_some()

    async def found(self) -> Mapping[int, Found]:
        """Nothing yet: going through a bucket takes its time, and `keep` does it."""
        return {}

    def let_go(self, digests: Sequence[bytes]) -> None:
        for digest in digests:
            if self._others.pop(digest, None) is None:
                self._unwanted[self._path(digest)] = None
        for path in list(islice(self._unwanted, max(0, len(self._unwanted) - _MAX_UNWANTED))):
            del self._unwanted[path]
        self._news.fire()

    async def keep(self, adopt: Adopt) -> None:
        """Find what is there, first this node's own, then what other nodes left; then delete what must go."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_deleting(), name="deletions in S3")
            await self._until_answered(lambda: self._find(self._own, adopt))
            num_own = self._num_adopted
            await self._until_answered(lambda: self._find(self._layout, adopt))
            log.info("S3: %d blocks of an earlier process, %d of others", num_own, self._num_adopted - num_own)
            while True:
                await self._until_answered(self._expire)
                pause_s = min(self._ttl_s / 4, _LONGEST_SURVEY_INTERVAL_S)
                await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))  # nodes that started together drift apart

    async def _write(self, block: Block) -> Problem | None:
        path = self._path(block.digest)
        self._unwanted.pop(path, None)
        while path in self._deleting:
            await self._news.wait()
        try:
            async with self._slots:
                await self._client.put(path, b"".join([block.data, checksum(block.data)]))
        except S3UnavailableError:
            return Problem.AWAY
        self._others.pop(block.digest, None)
        return None

    async def _read(self, block: Block) -> Problem | None:
        try:
            async with self._slots:
                value = await self._client.get(self._others.get(block.digest) or self._path(block.digest))
        except S3UnavailableError:
            return Problem.AWAY
        if value is None:
            return Problem.MISSING
        data = value[:-CHECKSUM_BYTES]
        if len(value) != self._object_bytes or checksum(data) != bytes(value[-CHECKSUM_BYTES:]):
            return Problem.DAMAGED
        if not is_block(block.digest, data):
            return Problem.DAMAGED
        block.data[:] = data
        return None

    async def _find(self, folder: str, adopt: Adopt) -> None:
        """Have blocks adopted until there is no room for any, or none is new."""
        async for page in self._client.list(folder):
            blocks = {_digest(one.path): one for one in sorted(page, key=_modified) if self._is_of_use(one)}
            if not blocks:
                continue
            adopted = adopt(list(blocks))
            self._others |= {one: blocks[one].path for one in adopted if blocks[one].path != self._path(one)}
            self._num_adopted += len(adopted)
            if not adopted:
                return

    def _is_of_use(self, found: Listed) -> bool:
        is_going = found.path in self._unwanted or found.path in self._deleting or self._is_old(found)
        return found.size_bytes == self._object_bytes and _is_block_path(found.path) and not is_going

    def _is_old(self, found: Listed) -> bool:
        return found.modified < datetime.now(UTC) - timedelta(seconds=self._ttl_s)

    async def _expire(self) -> None:
        """Delete blocks of all nodes and layouts whose time is over; what else lies in the bucket is left alone."""
        num_deleted = 0
        async for page in self._client.list(self._root):
            old = [one.path for one in page if _is_block_path(one.path) and self._is_old(one)]
            if old:
                await self._delete(old, "old")
                num_deleted += len(old)
        if num_deleted:
            log.info("%d objects in S3 were older than %g s", num_deleted, self._ttl_s)

    async def _keep_deleting(self) -> None:
        while True:
            if not self._unwanted:
                await self._news.wait()
                continue
            await self._until_answered(self._delete_some)

    async def _delete_some(self) -> None:
        """Of what is unwanted, oldest first."""
        paths = list(islice(self._unwanted, DELETES_AT_ONCE))
        for path in paths:
            del self._unwanted[path]
        try:
            await self._delete(paths, "let go")
        except S3UnavailableError:
            self._unwanted = dict.fromkeys(paths) | self._unwanted
            raise

    async def _delete(self, paths: Sequence[str], reason: str) -> None:
        """Nothing is written there meanwhile: what comes again must not go with what was there."""
        async with self._one_delete:
            self._deleting = frozenset(paths)
            try:
                await self._client.delete(paths)
                _deleted.labels(reason).inc(len(paths))
            finally:
                self._deleting = frozenset()
                self._news.fire()

    async def _until_answered(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except S3UnavailableError as error:
                await asyncio.sleep(max(_RETRY_S, error.retry_after_s))

    def _path(self, digest: bytes) -> str:
        return f"{self._own}/{digest.hex()}"


def _folder(node: str) -> str:
    """A node's name, as a part of a path that no store reads another way."""
    return re.sub(r"[^\w-]", "-", node, flags=re.ASCII)


def _is_block_path(path: str) -> bool:
    return re.fullmatch(r"armature/[^/]+/kv/[0-9a-f]+/[\w-]+/[0-9a-f]{32}", path, re.ASCII) is not None


def _digest(path: str) -> bytes:
    return bytes.fromhex(path.rpartition("/")[2])


def _modified(found: Listed) -> datetime:
    return found.modified
