"""Routers that tell each other through a real Valkey what they have placed."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from armature.routing.decision import Placed
from armature.routing.router import RoutingCore
from armature.runtime.children import Child
from armature.runtime.peer_routers import Peers
from armature.runtime.policies import load_policy
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import Member
from armature.v1.router_pb2 import Progress
from tests.support.eventually import eventually
from tests.unit.routing.cell import query, worker

WORKERS = ("d1", "d2", "d3", "d4")


class Router:
    """A core that tells the others what it does, and hears them."""

    def __init__(self, name: str, redis: RedisClient) -> None:
        self.core = RoutingCore(load_policy("seconds"), random.Random(0))
        for one in WORKERS:
            self.core.put_worker(worker(one))
        self.peers = Peers(self.core, redis, "cell", name)

    def place(self, request_id: str, seed: int, tenant: str = "") -> str:
        outcome = self.core.place(query(request_id, seed=seed, tenant=tenant), time.monotonic())
        assert isinstance(outcome, Placed)
        self.peers.placed(outcome)
        return outcome.chosen.decode_id

    def progress(self, request_id: str, kind: "Progress.Kind.ValueType") -> None:
        if kind == Progress.KIND_FINISHED:
            self.core.finish("gateway", request_id)
        else:
            self.core.first_token("gateway", request_id)
        self.peers.progressed("gateway", request_id, kind)

    @property
    def in_flight(self) -> int:
        return self.core.requests_in_flight


@asynccontextmanager
async def two_routers(valkey: Child) -> AsyncIterator[tuple[Router, Router]]:
    redis = RedisClient(f"redis://{valkey.address}", timeout_s=2.0)
    routers = Router("one", redis), Router("two", redis)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(router.peers.run()) for router in routers]
        await eventually(lambda: all(router.peers.is_listening for router in routers))
        try:
            yield routers
        finally:
            for task in running:
                task.cancel()
    await redis.close()


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Child]:
    server = await start_valkey(tmp_path)
    yield server
    await server.kill()


async def test_what_one_places_the_other_counts(valkey: Child) -> None:
    async with two_routers(valkey) as (one, two):
        first = {one.place(f"a{n}", n) for n in range(2)}
        await eventually(lambda: two.in_flight == 2)
        second = {two.place(f"b{n}", 10 + n) for n in range(2)}
        assert first | second == set(WORKERS), "the second router has found the idle ones"
        await eventually(lambda: one.in_flight == 4)


async def test_what_a_tenant_has_under_way_counts_for_it_at_every_router(valkey: Child) -> None:
    async with two_routers(valkey) as (one, two):
        for n in range(3):
            one.place(f"a{n}", n, "acme")
        two.place("b", 9, "umbrella")
        await eventually(lambda: all(router.in_flight == 4 for router in (one, two)))
        for router in (one, two):
            assert router.core.unstarted.requests() == {"acme": 3, "umbrella": 1}
        one.progress("a0", Progress.KIND_FIRST_TOKEN)
        await eventually(lambda: two.core.unstarted.requests()["acme"] == 2)


async def test_siblings_of_a_prompt_meet_although_different_routers_place_them(valkey: Child) -> None:
    async with two_routers(valkey) as (one, two):
        home = one.place("a", 7)
        await eventually(lambda: two.in_flight == 1)
        assert two.place("b", 7) == home


async def test_what_ends_ends_everywhere(valkey: Child) -> None:
    async with two_routers(valkey) as (one, two):
        one.place("a", 1)
        one.place("b", 2)
        await eventually(lambda: two.in_flight == 2)
        one.progress("a", Progress.KIND_FIRST_TOKEN)
        one.progress("a", Progress.KIND_FINISHED)
        await eventually(lambda: two.in_flight == 1)
        two.peers.on_change(MemberChange("left", Member(id="one", kind="router")))
        assert two.in_flight == 0, "a router that has left has nothing in flight"


async def test_whoever_has_missed_something_forgets_what_may_have_ended(valkey: Child) -> None:
    async with two_routers(valkey) as (one, two):
        one.place("a", 1)
        await eventually(lambda: two.in_flight == 1)
        await valkey.kill()  # and with it the word that the request has ended
        one.progress("a", Progress.KIND_FINISHED)
        await eventually(lambda: two.in_flight == 0)


async def test_decisions_go_on_while_valkey_is_away(valkey: Child) -> None:
    async with two_routers(valkey) as (one, two):
        await valkey.kill()
        placed = [router.place(f"r{n}", n) for n in range(4) for router in (one, two)]
        assert {placed.count(name) for name in WORKERS} == {2}
