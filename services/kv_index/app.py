"""Composes a kv-index: workers' events in, copies and changes of the index out."""

import asyncio
import logging

from prometheus_client import Gauge

from armature.index.trust import TrustState
from armature.runtime import service
from armature.runtime.index_followers import Followers
from armature.runtime.index_keeper import Keepable, Keeper
from armature.runtime.index_snapshots import SnapshotStore
from armature.runtime.placement import OFFLOAD_KIND, WORKER_KINDS
from armature.runtime.redis_client import RedisClient
from armature.runtime.runtime import Runtime
from armature.v1 import kv_index_pb2_grpc
from services.kv_index.book import Book
from services.kv_index.servicer import KvIndexServicer
from services.kv_index.settings import KvIndexSettings
from services.kv_index.silent import SilentWorkers
from services.kv_index.sources import Sources

log = logging.getLogger(__name__)

_GAUGE_INTERVAL_S = 1.0
_workers = Gauge("armature_kv_index_workers", "Workers that the index knows.")
_stale_workers = Gauge("armature_kv_index_stale_workers", "Workers of which events may be missing.")
_trusted = Gauge("armature_kv_index_trust", "Workers by how far their entries can be trusted.", ["state"])
_blocks = Gauge("armature_kv_index_blocks", "Distinct blocks in the index.")
_holdings = Gauge("armature_kv_index_holdings", "Pairs of block and worker in the index.")
_size_bytes = Gauge("armature_kv_index_size_bytes", "About how much memory the index takes.")


async def app(runtime: Runtime[KvIndexSettings]) -> None:
    settings, spawn = runtime.settings, runtime.tasks.create_task
    book = Book(Followers(settings.follower_queue_blocks))
    redis = RedisClient(settings.redis, timeout_s=settings.redis_timeout_s) if settings.redis else None
    store = _store(redis, runtime) if redis else None
    sources = Sources(book, runtime.channels, spawn, store)
    silent = SilentWorkers(book, settings.assumed_ttl_s, store, spawn)
    await runtime.view(*WORKER_KINDS, OFFLOAD_KIND, on_change=sources.on_change)
    await runtime.view(*WORKER_KINDS, on_change=silent.on_change)
    # A follower replaces what it has by what we have: we must not offer half of it after a restart.
    if not await sources.settled(settings.warm_up_s):
        log.warning("not all workers were heard within %.1f s; serving what is known", settings.warm_up_s)
    servicer = KvIndexServicer(book, sources, silent, settings)
    runtime.server.add(kv_index_pb2_grpc.add_KvIndexServicer_to_server, servicer, "armature.v1.KvIndex")
    spawn(silent.run(), name="expiry")
    spawn(_measure(book), name="index size")
    if store:
        await _keep(runtime, store, book, (sources, silent))
    try:
        await runtime.serve()
    finally:
        if redis:
            await redis.close()


def _store(redis: RedisClient, runtime: Runtime[KvIndexSettings]) -> SnapshotStore:
    settings = runtime.settings
    return SnapshotStore(redis, settings.namespace, runtime.member_id, ttl_s=settings.snapshot_ttl_s)


async def _keep(
    runtime: Runtime[KvIndexSettings], store: SnapshotStore, book: Book, known: tuple[Keepable, ...]
) -> None:
    """Keep snapshots, unless another kv-index that is there for longer does."""
    others = await runtime.view("kv-index")

    def is_ours() -> bool:
        return not (there := others.of_kind("kv-index")) or there[0].id == runtime.member_id

    settings = runtime.settings
    keeper = Keeper(store, interval_s=settings.snapshot_interval_s, share=settings.snapshot_share)
    runtime.tasks.create_task(keeper.run(lambda: book.index.worker_ids, known, is_ours), name="snapshots")


async def _measure(book: Book) -> None:
    while True:
        size = book.index.size()
        _workers.set(size.workers)
        _stale_workers.set(book.trust.count(TrustState.STALE) + book.trust.count(TrustState.REPAIRING))
        for state in TrustState:
            _trusted.labels(state.name.lower()).set(book.trust.count(state))
        _blocks.set(size.blocks)
        _holdings.set(size.holdings)
        _size_bytes.set(size.size_bytes)
        await asyncio.sleep(_GAUGE_INTERVAL_S)


def main() -> int:
    return service.main("kv-index", KvIndexSettings, app)
