"""A bidirectional stream that many requests share: one writer, one reader, one frame per wake-up.

A gRPC message costs the same whatever its size, so everything that is waiting when the writer wakes goes out together.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc

Out = TypeVar("Out")
In = TypeVar("In")


class FrameStream(Generic[Out, In]):
    """Runs one call. `take` composes the next frame from what is waiting; `on_frame` gets what arrives.

    The waiting list is the owner's, and bounded by the owner.
    """

    def __init__(self, open_call: Callable[[], Any], take: Callable[[], Out], on_frame: Callable[[In], None]) -> None:
        self._open_call = open_call
        self._take = take
        self._on_frame = on_frame
        self._waiting = asyncio.Event()

    def wake(self) -> None:
        """There is something to take."""
        self._waiting.set()

    async def run(self) -> str:
        """Until the stream ends; why it did. Raises only CancelledError."""
        call = self._open_call()
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(call))
            try:
                return await self._read(call)
            finally:
                writer.cancel()
                call.cancel()

    async def _write(self, call: Any) -> None:
        try:
            while True:
                await self._waiting.wait()
                self._waiting.clear()
                await call.write(self._take())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the reader sees the same end, with its reason

    async def _read(self, call: Any) -> str:
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                self._on_frame(frame)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if call.cancelled() and not (task and task.cancelling()):
                return "CANCELLED: the channel was closed"
            raise
        return "the stream was ended by its server"
