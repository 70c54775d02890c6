"""Composes a planner: routers' and workers' streams in, orders to a connector out, by whoever is elected."""

import asyncio
import time

from armature.connectors.advice import AdviceConnector
from armature.connectors.connector import Connector
from armature.connectors.local import LocalConnector
from armature.connectors.role import RoleConnector, Roles
from armature.planning.observer import Observer
from armature.runtime import service
from armature.runtime.election import Election
from armature.runtime.member_streams import MemberStreams
from armature.runtime.membership import OWN_PREFIX, MemberChange
from armature.runtime.placement import WORKER_KINDS
from armature.runtime.policies import DEFAULT_POLICY, load_policy
from armature.runtime.runtime import Runtime
from armature.steering.book import Book
from armature.steering.loop import Steering, SteeringOptions
from armature.steering.requests import RequestFeed
from armature.steering.workers import WorkerBoard
from armature.v1 import planner_pb2_grpc
from armature.v1.common_pb2 import PlannerInfo
from services.planner.servicer import PlannerServicer
from services.planner.settings import PlannerSettings

_DEFERENCE_LEASES = 1.5
"""Times a lease: by then a standby has taken over from whoever is gone."""


async def app(runtime: Runtime[PlannerSettings]) -> None:
    settings, spawn = runtime.settings, runtime.tasks.create_task

    seat = f"planner/{settings.model}" if settings.model else "planner"
    observer = Observer(time.monotonic())
    board = WorkerBoard(settings.model, settings.worker_gpus, runtime.channels, spawn)
    election = runtime.election(seat)
    prefix = f"{OWN_PREFIX}{settings.namespace}/{seat}/book/"
    book = Book(runtime.etcd, prefix, runtime.member_id)
    connector = _connector(runtime, board)
    options = SteeringOptions(
        policy=settings.load_policy(),
        is_mode_open=settings.mode == "auto",
        placement=load_policy(DEFAULT_POLICY),
        rehearsal_budget_s=settings.rehearsal_budget_s,
    )
    steering = Steering(options, board, observer, connector, book, lambda: election.is_leader)
    election.on_change, board.on_started, book.on_targets = steering.lead, steering.came, steering.wake
    servicer = PlannerServicer(steering, book, runtime.member_id, lambda: election.leader)
    runtime.server.add(planner_pb2_grpc.add_PlannerServicer_to_server, servicer, "armature.v1.Planner")
    try:
        spawn(book.run(), name="book")
        await runtime.view(*WORKER_KINDS, on_change=board.on_change)
        feed = RequestFeed(observer, board.model, runtime.channels)
        feed.on_arrival = steering.asked
        await _follow_routers(runtime, feed)
        spawn(_promise(runtime, steering), name="promise")
        spawn(_stand(runtime, election), name="election")
        spawn(steering.run(), name="steps")
        await runtime.serve()
    finally:
        await connector.close()


async def _follow_routers(runtime: Runtime[PlannerSettings], feed: RequestFeed) -> None:
    streams = MemberStreams("requests", runtime.channels, runtime.tasks.create_task, feed.read)

    def on_change(change: MemberChange) -> None:
        streams.on_change(change)

    await runtime.view("router", on_change=on_change)


async def _promise(runtime: Runtime[PlannerSettings], steering: Steering) -> None:
    """Keep it in our record whether a model without workers gets some for who asks."""
    told = PlannerInfo()
    while True:
        await steering.stepped.wait()
        if (promise := steering.promise()) != told:
            await runtime.update_planner(promise)
            told = promise


async def _stand(runtime: Runtime[PlannerSettings], election: Election) -> None:
    """Whoever has been here for longer knows the traffic, and workers that have left: it has the seat first."""
    planners = await runtime.view("planner")
    if planners.members:
        await asyncio.sleep(_DEFERENCE_LEASES * runtime.settings.lease_ttl_s)
    await election.run()


def _connector(runtime: Runtime[PlannerSettings], board: WorkerBoard) -> Connector:
    if runtime.settings.connector == "local":
        return LocalConnector(runtime.settings.control, board, runtime.channels)
    if runtime.settings.connector == "kubernetes":
        # Loaded for those who have a cluster: its resource types take their time.
        from armature.connectors.kubernetes import kubernetes_connector

        return kubernetes_connector(runtime.settings.workloads, Roles(board, runtime.channels))
    if runtime.settings.connector == "role":
        return RoleConnector(board, runtime.channels)
    return AdviceConnector(board)


def main() -> int:
    return service.main("planner", PlannerSettings, app)
