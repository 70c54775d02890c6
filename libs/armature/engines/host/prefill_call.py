"""One `Prefill.Prefill` call, as its caller sees it: a deadline for each step, and an end that frees what is staged."""

import asyncio
from contextlib import suppress
from typing import Any

import grpc

from armature.runtime import telemetry
from armature.runtime.errors import PeerError
from armature.runtime.tasks import Spawn
from armature.v1.worker_pb2 import PrefillRelease, PrefillRequest, PrefillStart, PrefillUpdate, StagingInfo
from armature.v1.worker_pb2_grpc import PrefillStub

WRITE_TIMEOUT_S = 1.0
"""A release is a few bytes; it waits only behind a peer that has stopped reading."""
CLOSE_TIMEOUT_S = 2.0
ALL_BLOCKS = 2**32 - 1


class PrefillCall:
    """Open it, take `update`s, `close` it, which releases everything."""

    def __init__(self, channel: grpc.aio.Channel, timeout_s: float, traceparent: str = "") -> None:
        metadata = ((telemetry.TRACEPARENT, traceparent),) if traceparent else ()
        self._call: Any = PrefillStub(channel).Prefill(timeout=timeout_s, metadata=metadata)
        self._reading: asyncio.Task[Any] | None = None

    async def start(self, start: PrefillStart, timeout_s: float) -> StagingInfo:
        """Ask for the prompt; return where its blocks will be staged.

        Raises:
            TimeoutError, PeerError, grpc.aio.AioRpcError: as `update` does.
        """
        await self._write(PrefillRequest(start=start), timeout_s)
        first = await self.update(timeout_s)
        if first.WhichOneof("step") != "staging":
            raise PeerError("the prefill worker did not begin with where it stages the blocks")
        return first.staging

    async def update(self, timeout_s: float) -> PrefillUpdate:
        """The next message.

        Raises:
            TimeoutError: none came in time; the call is still open.
            PeerError: the call has ended although more had to come.
            grpc.aio.AioRpcError: the call has failed.
        """
        # gRPC cancels the call when a read is cancelled, but a release must still follow: so the read is a task that
        # nobody cancels, and an unfinished one is taken up again.
        if self._reading is None:
            self._reading = asyncio.create_task(_read(self._call))
        done, _ = await asyncio.wait({self._reading}, timeout=timeout_s)
        if not done:
            raise TimeoutError(f"the prefill worker has said nothing for {timeout_s:g} s")
        reading, self._reading = self._reading, None
        message = reading.result()
        if message is grpc.aio.EOF:
            raise PeerError("the prefill worker has ended the call too early")
        return message

    def close_soon(self, spawn: Spawn) -> None:
        """Close in the background; at once and without a word where nothing new may be started any more."""
        closing = self.close()
        try:
            spawn(closing)
        except RuntimeError:  # the process is ending
            closing.close()
            self._call.cancel()

    async def close(self) -> None:
        """Release everything and end the call; takes at most a few seconds, and never fails."""
        try:
            if not self._call.done():
                await self._write(PrefillRequest(release=PrefillRelease(up_to_block=ALL_BLOCKS)))
                await self._call.done_writing()
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    while await self.update(CLOSE_TIMEOUT_S):
                        pass
        except (TimeoutError, PeerError, grpc.aio.AioRpcError, grpc.aio.UsageError):
            pass  # the end that was wanted, or a peer that its lease will tell
        finally:
            self._call.cancel()
            if self._reading is not None:
                reading = self._reading
                await asyncio.wait({reading})
                with suppress(BaseException):
                    reading.result()

    async def _write(self, request: PrefillRequest, timeout_s: float = WRITE_TIMEOUT_S) -> None:
        async with asyncio.timeout(timeout_s):
            await self._call.write(request)


async def _read(call: Any) -> Any:
    return await call.read()
