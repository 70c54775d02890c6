"""Composes a kv-index: workers' events in, copies and changes of the index out."""

import asyncio
import logging

from prometheus_client import Gauge

from armature.index.prefix_index import PrefixIndex
from armature.runtime import service
from armature.runtime.placement import WORKER_KINDS
from armature.runtime.runtime import Runtime
from armature.v1 import kv_index_pb2_grpc
from services.kv_index.followers import Followers
from services.kv_index.servicer import KvIndexServicer
from services.kv_index.settings import KvIndexSettings
from services.kv_index.sources import Sources

log = logging.getLogger(__name__)

_GAUGE_INTERVAL_S = 1.0
_workers = Gauge("armature_kv_index_workers", "Workers that the index knows.")
_stale_workers = Gauge("armature_kv_index_stale_workers", "Workers of which events may be missing.")
_blocks = Gauge("armature_kv_index_blocks", "Distinct blocks in the index.")
_holdings = Gauge("armature_kv_index_holdings", "Pairs of block and worker in the index.")
_size_bytes = Gauge("armature_kv_index_size_bytes", "About how much memory the index takes.")


async def app(runtime: Runtime[KvIndexSettings]) -> None:
    settings, index = runtime.settings, PrefixIndex()
    followers = Followers(settings.follower_queue_blocks)
    sources = Sources(index, followers, runtime.channels, runtime.tasks.create_task)
    await runtime.view(*WORKER_KINDS, on_change=sources.on_change)
    # A follower replaces what it has by what we have: we must not offer half of it after a restart.
    if not await sources.settled(settings.warm_up_s):
        log.warning("not all workers were heard within %.1f s; serving what is known", settings.warm_up_s)
    servicer = KvIndexServicer(index, followers, settings)
    runtime.server.add(kv_index_pb2_grpc.add_KvIndexServicer_to_server, servicer, "armature.v1.KvIndex")
    runtime.tasks.create_task(_measure(index), name="index size")
    await runtime.serve()


async def _measure(index: PrefixIndex) -> None:
    while True:
        size = index.size()
        _workers.set(size.workers)
        _stale_workers.set(size.stale_workers)
        _blocks.set(size.blocks)
        _holdings.set(size.holdings)
        _size_bytes.set(size.size_bytes)
        await asyncio.sleep(_GAUGE_INTERVAL_S)


def main() -> int:
    return service.main("kv-index", KvIndexSettings, app)
