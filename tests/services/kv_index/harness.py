"""A kv-index in this process, behind a real server, and what a follower makes of its stream."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from armature.index.prefix_index import PrefixIndex
from armature.runtime.channels import ChannelPool
from armature.runtime.index_changes import change_of
from armature.runtime.index_followers import Followers
from armature.runtime.index_snapshots import SnapshotStore
from armature.runtime.roster import MemberChange
from armature.runtime.server import RpcServer
from armature.v1.kv_index_pb2 import FollowRequest, IndexUpdate
from armature.v1.kv_index_pb2_grpc import KvIndexStub, add_KvIndexServicer_to_server
from services.kv_index.book import Book
from services.kv_index.servicer import KvIndexServicer
from services.kv_index.settings import KvIndexSettings
from services.kv_index.silent import SilentWorkers
from services.kv_index.sources import Sources
from tests.support.scripted_worker import ScriptedWorker

SETTINGS = KvIndexSettings(update_interval_s=0.0, copy_message_blocks=5)


class Copy:
    """What a follower makes of a Follow stream."""

    def __init__(self) -> None:
        self.index: PrefixIndex | None = None
        self.resets = 0
        self.largest = 0
        self._building: PrefixIndex | None = None

    def take(self, update: IndexUpdate) -> None:
        if update.reset:
            self._building = PrefixIndex()
            self.resets += 1
        target = self._building or self.index
        assert target is not None
        for change in update.changes:
            target.apply(change_of(change))
        self.largest = max(self.largest, sum(len(change.sequence_hashes) // 8 for change in update.changes))
        if update.complete:
            self.index, self._building = target, None


class Registry:
    """A kv-index without its membership: workers join and leave at the test's word."""

    def __init__(self, tasks: asyncio.TaskGroup, settings: KvIndexSettings, store: SnapshotStore | None) -> None:
        self.book = Book(Followers(settings.follower_queue_blocks))
        self.index, self.followers = self.book.index, self.book.followers
        self.channels = ChannelPool()
        self.tasks: list[asyncio.Task[None]] = []

        def spawn(reading: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            self.tasks.append(tasks.create_task(reading))
            return self.tasks[-1]

        self.sources = Sources(self.book, self.channels, spawn, store)
        self.silent = SilentWorkers(self.book, settings.assumed_ttl_s, store, spawn)
        self.server = RpcServer("127.0.0.1")
        servicer = KvIndexServicer(self.book, self.sources, self.silent, settings)
        self.server.add(add_KvIndexServicer_to_server, servicer, "armature.v1.KvIndex")
        self.stub = KvIndexStub(self.channels.get(""))

    def join(self, *workers: ScriptedWorker) -> None:
        for worker in workers:
            self.tell(MemberChange("joined", worker.member))

    def leave(self, worker: ScriptedWorker) -> None:
        self.tell(MemberChange("left", worker.member))

    def tell(self, change: MemberChange) -> None:
        self.sources.on_change(change)
        self.silent.on_change(change)

    def agrees(self, worker: ScriptedWorker, index: PrefixIndex | None = None) -> bool:
        index = index or self.index
        tiers = index.holdings(worker.worker_id).items()
        held = {(block, int(tier)) for tier, blocks in tiers for block in blocks}
        return held == set(worker.held.items()) and worker.worker_id in index and not index.is_stale(worker.worker_id)

    async def follow(self, copy: Copy) -> None:
        call = self.stub.Follow(FollowRequest())
        while isinstance(update := await call.read(), IndexUpdate):
            copy.take(update)


@asynccontextmanager
async def registry(settings: KvIndexSettings = SETTINGS, store: SnapshotStore | None = None) -> AsyncIterator[Registry]:
    async with asyncio.TaskGroup() as tasks:
        made = Registry(tasks, settings, store)
        await made.server.start()
        made.stub = KvIndexStub(made.channels.get(made.server.address))
        try:
            yield made
        finally:
            for task in made.tasks:
                task.cancel()
            await made.server.stop(0)
            await made.channels.close()
