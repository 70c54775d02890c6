"""Roles change as ordered: the idlest first, and what can't be done is told."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from armature.connectors.advice import AdviceConnector
from armature.connectors.connector import Order, ProblemKind
from armature.connectors.role import RoleConnector, Roles
from armature.planning.decision import Flips
from armature.planning.fleet import Counts
from armature.runtime.channels import ChannelPool
from armature.runtime.server import RpcServer
from armature.v1 import worker_pb2 as pb
from armature.v1.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from tests.unit.connectors.fleet import A, D, FakeWorkers, P


@dataclass
class FlippingWorker(WorkerServicer):
    """Only notes which role it is to have."""

    roles: list[int] = field(default_factory=list[int])

    async def SetRole(self, request: pb.SetRoleRequest, context: Any) -> pb.SetRoleResponse:
        self.roles.append(request.role)
        return pb.SetRoleResponse()


@asynccontextmanager
async def flipping(workers: FakeWorkers, **roles: Any) -> AsyncIterator[dict[str, FlippingWorker]]:
    async with AsyncExitStack() as stack:
        made: dict[str, FlippingWorker] = {}
        for name, role in roles.items():
            made[name], server = FlippingWorker(), RpcServer("127.0.0.1")
            server.add(add_WorkerServicer_to_server, made[name], "armature.v1.Worker")
            await server.start()
            stack.push_async_callback(server.stop, 0)
            workers.add(name, role, server.address)
        yield made


@pytest.fixture
async def channels() -> AsyncIterator[ChannelPool]:
    pool = ChannelPool()
    yield pool
    await pool.close()


async def test_the_idlest_is_flipped_and_counts_at_once_as_what_it_is_now(channels: ChannelPool) -> None:
    workers = FakeWorkers()
    async with flipping(workers, busy=D, idle=D, p=P) as made:
        workers.load["busy"] = 3
        roles = Roles(workers, channels)
        outcome = await roles.flip(Flips(to_prefill=1))
        assert outcome.done == ("idle turned from decode to prefill",) and not outcome.problems
        assert made["idle"].roles == [P] and not made["busy"].roles and not made["p"].roles
        # Its record still says otherwise.
        assert [member.id for member in roles.of_role(P)] == ["p", "idle"] or [
            member.id for member in roles.of_role(P)
        ] == ["idle", "p"]
        assert [member.id for member in roles.of_role(D)] == ["busy"]


async def test_a_fleet_is_turned_to_the_wanted_counts_without_starting_anybody(channels: ChannelPool) -> None:
    workers = FakeWorkers()
    async with flipping(workers, a=A, b=A, c=D):
        connector = RoleConnector(workers, channels)
        outcome = await connector.apply(Order(Counts(0, 1, 2)))
        assert len(outcome.done) == 2 and not outcome.problems
        assert (await connector.observe()).fleet.ready == Counts(0, 1, 2)
        refused = await connector.apply(Order(Counts(0, 1, 5)))
        assert [problem.kind for problem in refused.problems] == [ProblemKind.REFUSED]
        assert not refused.done


async def test_a_worker_that_is_away_keeps_its_role_and_is_told(channels: ChannelPool) -> None:
    workers = FakeWorkers()
    workers.add("gone", D, "127.0.0.1:1")
    connector = RoleConnector(workers, channels)
    outcome = await connector.apply(Order(Counts(0, 1, 0)))
    assert [problem.kind for problem in outcome.problems] == [ProblemKind.AWAY]
    assert "gone keeps its role" in outcome.problems[0].text
    assert (await connector.observe()).fleet.ready == Counts(0, 0, 1)


async def test_advice_sees_who_drains_and_touches_nobody() -> None:
    workers = FakeWorkers()
    workers.add("one", A)
    workers.add("two", A, drains=True)
    connector = AdviceConnector(workers)
    fleet = (await connector.observe()).fleet
    assert (fleet.ready, fleet.starting, fleet.draining) == (Counts(1), Counts(), 1)
    assert await connector.apply(Order(Counts(5))) == type(await connector.apply(Order(Counts(1))))()
