"""Makes the store of a layout: its pool, the tiers below it, and what moves blocks between them and workers."""

import logging

from armature.engines.host_memory import HostBlockMemory
from armature.index.tiers import Tier
from armature.kv_store.disk import open_disk, slots_in
from armature.kv_store.lower_store import LowerStore
from armature.kv_store.node_store import NodeStore, StoreSettings
from armature.kv_store.redis_store import RedisStore
from armature.kv_store.s3_store import Layout, S3BlockStore
from armature.offload.policy import OffloadPolicy, TierShape
from armature.offload.store import StoreLimits, TierStore
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import StartError
from armature.runtime.redis_client import RedisClient
from armature.runtime.s3_client import S3Client
from armature.runtime.tasks import Spawn
from armature.transfer.transports import open_transports
from armature.v1.common_pb2 import KvLayout
from services.kv_offload.settings import KvOffloadSettings

log = logging.getLogger(__name__)

# Until they are measured. Orders of magnitude: a copy in memory, a solid-state disk, a store in the same room.
_ASSUMED_BYTES_PER_S = {Tier.G2: 5e9, Tier.G3: 1e9, Tier.G4: 3e8}
_NO_EXPIRY_S = 1e9
"""Reservations end with the read that they are for, never before: their slots are being written."""


async def open_store(
    settings: KvOffloadSettings,
    policy: OffloadPolicy,
    layout: KvLayout,
    channels: ChannelPool,
    spawn: Spawn,
    *,
    node: str,
) -> NodeStore:
    """The store with all that an earlier process has left; its `run` is the caller's to start.

    Raises:
        StartError: host memory holds not even one block, or NIXL is wanted and can't be had.
    """
    sizes = _sizes(settings, layout)
    if not sizes[Tier.G2]:
        raise StartError(f"host_bytes is {settings.host_bytes}; a block has {layout.block_bytes} bytes")
    pool = HostBlockMemory(sizes[Tier.G2], layout.block_bytes)
    transports = await open_transports(
        settings.transport,
        pool,
        channels=channels,
        spawn=spawn,
        host=settings.host,
        read_timeout_s=settings.read_timeout_s,
    )
    stores = await _open_stores(settings, layout, sizes, node)
    shapes = {
        tier: TierShape(num_blocks=size, block_bytes=layout.block_bytes, read_bytes_per_s=_ASSUMED_BYTES_PER_S[tier])
        for tier, size in sizes.items()
        if tier is Tier.G2 or tier in stores
    }
    limits = StoreLimits(ledger_blocks=settings.remembered_blocks, reservation_s=_NO_EXPIRY_S)
    store = NodeStore(
        TierStore(policy, shapes, limits),
        pool,
        stores,
        transports,
        spawn=spawn,
        settings=StoreSettings(lease_s=settings.lease_s, max_takes=settings.max_takes),
    )
    await store.restore()
    log.info("open: %s", ", ".join(f"{tier.name} {shape.num_blocks} blocks" for tier, shape in shapes.items()))
    return store


def _sizes(settings: KvOffloadSettings, layout: KvLayout) -> dict[Tier, int]:
    """Blocks that fit each tier."""
    return {
        Tier.G2: settings.host_bytes // layout.block_bytes,
        Tier.G3: slots_in(settings.disk_bytes, layout.block_bytes),
        Tier.G4: settings.remote_bytes // layout.block_bytes,
    }


async def _open_stores(
    settings: KvOffloadSettings, layout: KvLayout, sizes: dict[Tier, int], node: str
) -> dict[Tier, LowerStore]:
    """What is below host memory. A disk that can't be used costs its tier, and no more."""
    stores: dict[Tier, LowerStore] = {}
    if settings.disk_dir is not None and sizes[Tier.G3]:
        try:
            disk = await open_disk(settings.disk_dir, layout.kv_fingerprint, layout.block_bytes, sizes[Tier.G3])
            if disk.discarded:
                log.warning("%d damaged blocks on disk were discarded", disk.discarded)
            stores[Tier.G3] = disk
        except OSError as error:
            log.error("there is no tier G3: %s can't be used: %s", settings.disk_dir, error)
    if sizes[Tier.G4]:
        stores[Tier.G4] = _open_remote(settings, layout, sizes[Tier.G4], node)
    return stores


def _open_remote(settings: KvOffloadSettings, layout: KvLayout, num_blocks: int, node: str) -> LowerStore:
    if settings.bucket is not None:
        return S3BlockStore(
            S3Client(settings.bucket, timeout_s=settings.remote_timeout_s),
            Layout(settings.namespace, layout.kv_fingerprint, layout.block_bytes, node),
            ttl_s=settings.remote_ttl_s,
        )
    return RedisStore(
        RedisClient(settings.remote or settings.redis, timeout_s=settings.remote_timeout_s),
        namespace=settings.namespace,
        layout=layout.kv_fingerprint,
        num_blocks=num_blocks,
        ttl_s=settings.remote_ttl_s,
    )
