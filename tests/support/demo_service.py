"""A small service on the real runtime, for tests of the runtime: `python -m tests.support.demo_service`.

What `Match` is asked for decides what happens; `Follow` sends one message and the last one when it is released.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from armature.runtime.service import Runtime, main
from armature.runtime.settings import CommonSettings, option
from armature.runtime.telemetry import span, trace_metadata
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from armature.v1.common_pb2 import ROLE_DECODE, WorkerInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoSettings(CommonSettings):
    """A service for tests."""

    next: str = option("", help="address of another demo service that Match asks too")
    crash: str = option("", help="start: fail at the start; thread: hang there in a thread")
    linger: bool = option(False, help="hang after serving")


class Demo(kv_index_pb2_grpc.KvIndexServicer):
    def __init__(self, runtime: Runtime[DemoSettings]) -> None:
        self.runtime = runtime
        self.released = asyncio.Event()
        self.crashing = asyncio.Event()
        self.streams = 0
        self.no_streams = asyncio.Event()
        self.no_streams.set()

    async def Match(self, request: kv_index_pb2.MatchRequest, context: Any) -> kv_index_pb2.MatchResponse:
        match request.sequence_hashes:
            case b"release":
                self.released.set()
            case b"crash":
                self.crashing.set()
            case b"update":
                await self.runtime.update_worker(WorkerInfo(role=ROLE_DECODE, num_blocks=7))
            case b"block":
                await asyncio.Event().wait()
            case _:
                with span("match", blocks=len(request.sequence_hashes)):
                    log.info("matching", extra={"blocks": len(request.sequence_hashes)})
                    await self._ask_next(request)
        return kv_index_pb2.MatchResponse(indexed_blocks=self.runtime.epoch)

    async def _ask_next(self, request: kv_index_pb2.MatchRequest) -> None:
        if self.runtime.settings.next:
            stub = kv_index_pb2_grpc.KvIndexStub(self.runtime.channels.get(self.runtime.settings.next))
            await stub.Match(request, timeout=5.0, metadata=trace_metadata())

    async def Follow(
        self, request: kv_index_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[kv_index_pb2.IndexUpdate]:
        self.streams += 1
        self.no_streams.clear()
        try:
            yield kv_index_pb2.IndexUpdate(reset=True)
            await self.released.wait()
            yield kv_index_pb2.IndexUpdate(complete=True)
        finally:
            self.streams -= 1
            if not self.streams:
                self.no_streams.set()


async def app(runtime: Runtime[DemoSettings]) -> None:
    demo = Demo(runtime)
    if runtime.settings.crash == "start":
        raise RuntimeError("no weights")
    if runtime.settings.crash == "thread":
        log.info("loading")
        await asyncio.to_thread(time.sleep, 60)

    async def crash() -> None:
        await demo.crashing.wait()
        raise RuntimeError("the engine has died")

    async def drain() -> None:
        await demo.no_streams.wait()

    runtime.tasks.create_task(crash(), name="engine")
    runtime.server.add(kv_index_pb2_grpc.add_KvIndexServicer_to_server, demo, "armature.v1.KvIndex")
    await runtime.serve(worker=WorkerInfo(role=ROLE_DECODE, num_blocks=3), drain=drain, announce={"http": "h:1"})
    if runtime.settings.linger:
        log.info("lingering")
        await asyncio.Event().wait()


if __name__ == "__main__":
    raise SystemExit(main("demo", DemoSettings, app))
