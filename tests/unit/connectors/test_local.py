"""Processes of a cell are started and drained as ordered, the second time nothing is left to do."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from armature.connectors.connector import Order, ProblemKind
from armature.connectors.local import LocalConnector
from armature.planning.fleet import Counts, Fleet
from armature.runtime.channels import ChannelPool
from armature.v1 import cell_pb2 as pb
from armature.v1.cell_pb2_grpc import CellControlServicer, add_CellControlServicer_to_server
from tests.unit.connectors.fleet import A, D, FakeWorkers, P

STARTING, READY, STOPPING = (
    pb.WorkerProcess.STATE_STARTING,
    pb.WorkerProcess.STATE_READY,
    pb.WorkerProcess.STATE_STOPPING,
)


@dataclass
class FakeCell(CellControlServicer):
    """Processes that are a list only."""

    workers: FakeWorkers = field(default_factory=FakeWorkers)
    processes: list[pb.WorkerProcess] = field(default_factory=list[pb.WorkerProcess])
    most: int = 99

    def add(self, role: Any, state: Any = READY, **fields: Any) -> pb.WorkerProcess:
        name = f"w{len(self.processes)}"
        member_id = f"id-{name}" if state == READY else ""
        process = pb.WorkerProcess(name=name, role=role, state=state, member_id=member_id, **fields)
        self.processes.append(process)
        if member_id:
            self.workers.add(member_id, role)
        return process

    async def ListWorkers(self, request: Any, context: Any) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse(workers=self.processes)

    async def StartWorker(self, request: pb.StartWorkerRequest, context: Any) -> pb.StartWorkerResponse:
        if len(self.processes) == self.most:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the cell stops")
        return pb.StartWorkerResponse(worker=self.add(request.role, STARTING))

    async def StopWorker(self, request: pb.StopWorkerRequest, context: Any) -> pb.StopWorkerResponse:
        next(one for one in self.processes if one.name == request.name).state = STOPPING
        return pb.StopWorkerResponse()

    def leaving(self) -> list[str]:
        return [one.name for one in self.processes if one.state == STOPPING]


@dataclass
class World:
    cell: FakeCell
    connector: LocalConnector
    server: grpc.aio.Server


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    cell, server, address = FakeCell(), grpc.aio.server(), f"unix:{tmp_path}/c"
    add_CellControlServicer_to_server(cell, server)
    server.add_insecure_port(address)
    await server.start()
    channels = ChannelPool()
    connector = LocalConnector(address, cell.workers, channels)
    yield World(cell, connector, server)
    await connector.close()
    await channels.close()
    await server.stop(0)


async def test_what_is_missing_starts_once_and_counts_until_it_is_ready(world: World) -> None:
    world.cell.add(A)
    outcome = await world.connector.apply(Order(Counts(3)))
    assert outcome.done == ("w1 starts as aggregated", "w2 starts as aggregated")
    assert (await world.connector.observe()).fleet == Fleet(Counts(1), Counts(2))
    assert not (await world.connector.apply(Order(Counts(3)))).done


async def test_a_worker_counts_once_while_it_registers(world: World) -> None:
    starting = world.cell.add(A, STARTING)
    world.cell.workers.add("just registered", A)
    assert (await world.connector.observe()).fleet == Fleet(Counts(), Counts(1))
    starting.state, starting.member_id = READY, "just registered"
    assert (await world.connector.observe()).fleet == Fleet(Counts(1))


async def test_those_that_start_leave_before_the_idlest_and_nobody_leaves_twice(world: World) -> None:
    for _ in range(3):
        world.cell.add(D)
    world.cell.add(D, STARTING)
    world.cell.workers.load = {"id-w0": 2, "id-w1": 0, "id-w2": 5}
    assert (await world.connector.apply(Order(Counts(0, 0, 2)))).done == (
        "w3 drains, it was decode",
        "w1 drains, it was decode",
    )
    assert world.cell.leaving() == ["w1", "w3"]
    assert (await world.connector.observe()).fleet == Fleet(Counts(0, 0, 2), draining=2)
    assert not (await world.connector.apply(Order(Counts(0, 0, 2)))).done


async def test_a_flipped_worker_leaves_as_what_it_is_now(world: World) -> None:
    world.cell.add(P)
    world.cell.add(D)
    world.cell.workers.records["id-w0"].worker.role = D
    assert (await world.connector.observe()).fleet.ready == Counts(0, 0, 2)
    world.cell.workers.load = {"id-w1": 1}
    assert (await world.connector.apply(Order(Counts(0, 0, 1)))).done == ("w0 drains, it was decode",)


async def test_a_worker_that_does_not_start_is_told(world: World) -> None:
    world.cell.add(A, STARTING, restarts=3, last_error="w0 exited with status 1: no such model")
    (problem,) = (await world.connector.observe()).problems
    assert problem.kind is ProblemKind.FAILED and "no such model" in problem.text


async def test_what_was_done_before_the_cell_went_away_is_told(world: World) -> None:
    world.cell.most = 1
    outcome = await world.connector.apply(Order(Counts(2)))
    assert outcome.done == ("w0 starts as aggregated",)
    assert [problem.kind for problem in outcome.problems] == [ProblemKind.AWAY]


async def test_without_the_cell_nothing_is_known_and_nothing_raises(world: World) -> None:
    world.cell.add(A)
    await world.connector.observe()
    await world.server.stop(0)
    observed = await world.connector.observe()
    assert observed.is_stale and observed.fleet.ready == Counts(1)
    (problem,) = (await world.connector.apply(Order(Counts(2)))).problems
    assert problem.kind is ProblemKind.AWAY
