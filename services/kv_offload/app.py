"""Composes a kv-offload, whose store is opened as soon as a worker of its node tells what blocks are like."""

import asyncio

from armature.offload.policy import OffloadPolicy
from armature.routing.parts import PolicyError
from armature.runtime import service
from armature.runtime.errors import StartError
from armature.runtime.membership import MemberChange
from armature.runtime.placement import WORKER_KINDS
from armature.runtime.policies import load_offload_policy
from armature.runtime.runtime import Runtime
from armature.v1 import kv_offload_pb2_grpc, worker_pb2_grpc
from armature.v1.common_pb2 import KvLayout, OffloadInfo, OffloadTier
from armature.v1.common_pb2 import Tier as WireTier
from services.kv_offload.opening import open_store
from services.kv_offload.servicer import KvOffloadServicer, Opened
from services.kv_offload.settings import KvOffloadSettings


async def app(runtime: Runtime[KvOffloadSettings]) -> None:
    try:
        policy = load_offload_policy(runtime.settings.policy)
    except PolicyError as error:
        raise StartError(f"policy: {error}") from error
    servicer = KvOffloadServicer(runtime.epoch)
    runtime.server.add(kv_offload_pb2_grpc.add_KvOffloadServicer_to_server, servicer, "armature.v1.KvOffload")
    runtime.server.add(worker_pb2_grpc.add_BlocksServicer_to_server, servicer, "armature.v1.Blocks")
    layout: asyncio.Future[KvLayout] = asyncio.get_running_loop().create_future()

    def on_change(change: MemberChange) -> None:
        info = change.member.worker
        is_ours = change.member.node == runtime.node and runtime.settings.model in ("", info.model.name)
        if change.kind != "left" and is_ours and info.kv_fingerprint and not layout.done():
            layout.set_result(KvLayout(kv_fingerprint=info.kv_fingerprint, block_bytes=info.model.block_bytes))

    await runtime.view(*WORKER_KINDS, on_change=on_change)
    keeping = runtime.tasks.create_task(_open(runtime, policy, layout, servicer), name="store")
    try:
        await runtime.serve()
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})  # nothing is copied any more when files are closed
        if servicer.opened:
            await servicer.opened.store.close()


async def _open(
    runtime: Runtime[KvOffloadSettings],
    policy: OffloadPolicy,
    told: "asyncio.Future[KvLayout]",
    servicer: KvOffloadServicer,
) -> None:
    """Wait for the layout, then open the store, tell the cell and keep it going."""
    layout = await told
    spawn = runtime.tasks.create_task
    store = await open_store(runtime.settings, policy, layout, runtime.channels, spawn, node=runtime.node)
    servicer.opened = Opened(store, layout)
    tiers = [
        OffloadTier(tier=WireTier.ValueType(tier), num_blocks=space.shape.num_blocks)
        for tier, space in store.tiers.spaces.items()
    ]
    await runtime.update_offload(OffloadInfo(layout=layout, tiers=tiers))
    await store.run()


def main() -> int:
    return service.main("kv-offload", KvOffloadSettings, app)
