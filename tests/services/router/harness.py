"""A router without membership and index, over a real server; gateways talk to it by hand."""

import asyncio
import random
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc

from armature.index.packing import pack_hashes
from armature.routing.history import History
from armature.routing.policy import Assumed, Policy
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.router import RoutingCore
from armature.runtime.cell import Cell
from armature.runtime.channels import ChannelPool
from armature.runtime.news_gate import NewsGate
from armature.runtime.policies import load_policy
from armature.runtime.roster import MemberChange
from armature.runtime.server import RpcServer
from armature.v1.router_pb2 import Placement, Progress, Query, RouteRequest, RouteResponse
from armature.v1.router_pb2_grpc import RouterStub, add_RouterServicer_to_server
from services.router.servicer import RouterServicer
from tests.support.scripted_worker import ScriptedWorker

_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)

POLICY = replace(load_policy("seconds"), assume=Assumed(prefill_tokens_per_s=1000.0))


class Routing:
    """Membership and index change at the test's word."""

    def __init__(self, tasks: asyncio.TaskGroup, policy: Policy) -> None:
        self.core = RoutingCore(policy, random.Random(0))
        self.channels = ChannelPool()
        self.tasks: list[asyncio.Task[None]] = []
        self.connections: list[grpc.aio.Channel] = []

        def spawn(reading: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            self.tasks.append(tasks.create_task(reading))
            return self.tasks[-1]

        changed = asyncio.Event()
        gate = NewsGate()
        self.cell = Cell(self.core, self.channels, spawn, 0.01, changed, gate)
        self.server = RpcServer("127.0.0.1")
        self.dispatcher = Dispatcher(self.core)
        history = History(self.core.policy, 1 << 20)
        servicer = RouterServicer(self.dispatcher, self.cell.members, history, changed, gate=gate)
        spawn(servicer.run())
        self.server.add(add_RouterServicer_to_server, servicer, "armature.v1.Router")
        self.server.talk_lean("/armature.v1.Router/Route", servicer.begin, RouteRequest.FromString)

    def join(self, *workers: ScriptedWorker) -> None:
        for worker in workers:
            self.cell.on_change(MemberChange("joined", worker.member))

    def gateway(self, *, is_lean: bool = True) -> Any:
        """A stream of grpcio's client to either port that serves it."""
        address = self.server.stream_address if is_lean else self.server.address
        self.connections.append(grpc.aio.insecure_channel(address, _OWN_CONNECTION))
        return RouterStub(self.connections[-1]).Route()


@asynccontextmanager
async def routing(policy: Policy = POLICY) -> AsyncGenerator[Routing]:
    async with asyncio.TaskGroup() as tasks:
        made = Routing(tasks, policy)
        await made.server.start()
        try:
            yield made
        finally:
            for task in made.tasks:
                task.cancel()
            for connection in made.connections:
                await connection.close()
            await made.server.stop(0)
            await made.channels.close()


def query(query_id: int, tokens: int = 500, **changes: Any) -> Query:
    facts: dict[str, Any] = {
        "query_id": query_id, "request_id": f"r{query_id}", "model": "m", "prompt_tokens": tokens,
        "sequence_hashes": pack_hashes(range(tokens // 10)),
    }  # fmt: skip
    return Query(**(facts | changes))


def progress(request_id: str, kind: "Progress.Kind.ValueType") -> Progress:
    return Progress(request_id=request_id, kind=kind)


async def ask(call: Any, *queries: Query, progress: list[Progress] | None = None) -> list[Placement]:
    await call.write(RouteRequest(queries=queries, progress=progress or []))
    return await hear(call)


async def hear(call: Any) -> list[Placement]:
    """The next message's answers."""
    answer = await asyncio.wait_for(call.read(), 10)
    assert isinstance(answer, RouteResponse)
    return list(answer.placements)
