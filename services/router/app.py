"""Composes a router: membership, load and index in, placements out."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from armature.routing.history import History
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.router import RoutingCore
from armature.runtime import service
from armature.runtime.assumptions import Assumptions
from armature.runtime.cell import Cell
from armature.runtime.disbelief import Disbelief
from armature.runtime.index_replica import Replica
from armature.runtime.lingering import Lingering
from armature.runtime.membership import MemberChange
from armature.runtime.news_gate import NewsGate
from armature.runtime.peer_routers import Peers
from armature.runtime.placement import OFFLOAD_KIND, WORKER_KINDS, promise_of
from armature.runtime.redis_client import RedisClient
from armature.runtime.runtime import Runtime
from armature.v1 import router_pb2_grpc
from armature.v1.router_pb2 import RouteRequest
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings

log = logging.getLogger(__name__)


async def app(runtime: Runtime[RouterSettings]) -> None:
    settings, policy = runtime.settings, runtime.settings.load_policy()
    core, changed = RoutingCore(policy, random.Random()), asyncio.Event()
    history = History(policy, settings.history_bytes)
    gate = NewsGate()
    cell = Cell(core, runtime.channels, runtime.tasks.create_task, settings.load_reports_per_s, changed, gate)
    replica = Replica(core, runtime.channels, gate)
    hears: dict[str, Callable[[MemberChange], None]] = {
        **dict.fromkeys((*WORKER_KINDS, OFFLOAD_KIND), cell.on_change),
        "planner": Lingering(lambda change: core.promise(change.member.id, *promise_of(change))),
        "kv-index": replica.on_change,
    }
    # One view of all: each asks etcd for signs of life.
    await runtime.view(*hears, on_change=lambda change: hears[change.member.kind](change))
    runtime.tasks.create_task(replica.run(), name="index replica")
    runtime.tasks.create_task(replica.measure(), name="index gauges")
    if not await replica.settled(settings.warm_up_s):
        log.warning("no copy of the index within %.1f s; placing by load alone until there is one", settings.warm_up_s)
    assumptions = Assumptions(cell.members, lambda: replica.followed, runtime.channels)
    runtime.tasks.create_task(assumptions.run(), name="assumptions")
    disbelief = Disbelief(core, lambda: replica.followed, runtime.channels)
    runtime.tasks.create_task(disbelief.run(), name="disbelief")
    async with _peers(runtime, core) as peers:
        servicer = RouterServicer(Dispatcher(core), cell.members, history, changed, assumptions.note, peers, gate)
        runtime.tasks.create_task(servicer.run(), name="queue")
        runtime.server.add(router_pb2_grpc.add_RouterServicer_to_server, servicer, "armature.v1.Router")
        runtime.server.talk_lean("/armature.v1.Router/Route", servicer.begin, RouteRequest.FromString)
        await runtime.serve()


@asynccontextmanager
async def _peers(runtime: Runtime[RouterSettings], core: RoutingCore) -> AsyncGenerator[Peers | None]:
    """The other routers, if there is a Redis to tell each other through."""
    settings = runtime.settings
    if not settings.redis:
        yield None
        return
    redis = RedisClient(settings.redis, timeout_s=settings.redis_timeout_s)
    peers = Peers(core, redis, settings.namespace, runtime.member_id)
    await runtime.view("router", on_change=peers.on_change)
    runtime.tasks.create_task(peers.run(), name="other routers")
    try:
        yield peers
    finally:
        await redis.close()


def main() -> int:
    return service.main("router", RouterSettings, app)
