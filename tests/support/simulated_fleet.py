"""Dozens of simulated workers in one process: `python -m tests.support.simulated_fleet --workers 32 ...`.

Each is a whole worker: its own engine, port, record and lease in etcd, its own load and KV events. They share a Python
process, so they cost its memory once and die together, and their metrics are summed. It takes a worker's settings.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from armature.engines.host.compose import make_engine, simulated_model
from armature.engines.host.host import Identity, WorkerHost
from armature.engines.host.settings import WorkerSettings
from armature.engines.local import LocalEngine
from armature.engines.simulated import simulated_engine
from armature.performance.step import StepShape
from armature.runtime import service
from armature.runtime.presence import Presence
from armature.runtime.runtime import Runtime
from armature.runtime.server import RpcServer
from armature.runtime.settings import option
from armature.transfer.transports import GRPC, open_transports
from armature.v1.common_pb2 import MEMBER_STATE_READY, ROLE_AGGREGATED, Member, WorkerInfo

KIND = "simulated-fleet"


@dataclass(frozen=True, kw_only=True)
class FleetSettings(WorkerSettings):
    """Simulated workers that compute their prompts themselves."""

    workers: int = option(8, help="how many")
    pace_s: float = option(0.0, help="time from an answer's token to its next, whatever else is computed; 0: none")


@dataclass(frozen=True, slots=True)
class Paced:
    """Steps that last the same whatever they compute, or no time if no answer is running: prompts cost nothing."""

    decode_step_s: float

    def step_s(self, shape: StepShape) -> float:
        return self.decode_step_s if shape.num_decodes else 0.0

    def stretch_s(self, num_decodes: int, context_tokens: int, num_steps: int) -> float:
        return self.decode_step_s * num_steps


def _engine(settings: FleetSettings) -> LocalEngine:
    if not settings.pace_s:
        return make_engine(settings)
    model = replace(simulated_model(settings), performance=Paced(settings.pace_s))
    return simulated_engine(model, settings.cluster_secret.encode(), max_waiting=settings.max_waiting)


@asynccontextmanager
async def simulated_worker(runtime: Runtime[FleetSettings], number: int) -> AsyncIterator[WorkerHost]:
    """A worker that the cell knows, until the end; its id is the fleet's and its number."""
    settings, channels, spawn = runtime.settings, runtime.channels, runtime.tasks.create_task
    member_id, epoch = f"{runtime.member_id}-{number:03}", time.time_ns()
    engine, server = _engine(settings), RpcServer(settings.host)
    transports = await open_transports(
        GRPC, engine.memory, channels=channels, spawn=spawn, host=settings.host, read_timeout_s=settings.read_timeout_s
    )
    secret = settings.cluster_secret.encode()
    identity = Identity(member_id, epoch, ROLE_AGGREGATED)
    host = WorkerHost(engine, transports, identity=identity, cluster_secret=secret, channels=channels, spawn=spawn)
    presence = Presence(settings, runtime.tasks)

    async def update(worker: WorkerInfo) -> None:
        member.worker.CopyFrom(worker)
        await presence.update(member)

    host.register(server, update)
    await presence.connect()
    await engine.start(host.on_step)
    await server.start()
    member = Member(
        id=member_id, kind="decode-worker", address=server.address, stream_address=server.stream_address, epoch=epoch,
        state=MEMBER_STATE_READY, pid=os.getpid(), worker=host.worker_info,
    )  # fmt: skip
    try:
        await presence.join(member)
        server.set_serving(True)
        yield host
    finally:
        await presence.close()
        await server.stop()
        await engine.stop()
        await transports.close()


async def app(runtime: Runtime[FleetSettings]) -> None:
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(simulated_worker(runtime, number))
            for number in range(runtime.settings.workers)
        ]

        async def drain() -> None:
            await asyncio.gather(*(host.drain() for host in hosts))

        await runtime.serve(drain=drain)


if __name__ == "__main__":
    raise SystemExit(service.main(KIND, FleetSettings, app))
