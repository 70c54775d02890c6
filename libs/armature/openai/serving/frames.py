"""A bidirectional stream that many requests share: one frame per turn of the event loop.

A message costs the same whatever its size, so everything that is waiting goes out together.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from armature.runtime.lean_call import LeanCall, Method, open_call


class Message(Protocol):
    """A protobuf message, as far as sending goes."""

    def SerializeToString(self) -> bytes: ...


Out = TypeVar("Out", bound=Message)
In = TypeVar("In")


class FrameStream(Generic[Out, In]):
    """Runs one call. `take` composes the next frame from what is waiting; `on_frames` gets what arrives at once.

    The waiting list is the owner's, and bounded by the owner.
    """

    def __init__(
        self,
        method: Method,
        read: Callable[[bytes], In],
        take: Callable[[], Out],
        on_frames: Callable[[list[In]], None],
    ) -> None:
        self._method = method
        self._read = read
        self._take = take
        self._on_frames = on_frames
        self._call: LeanCall | None = None
        self._is_waiting = False
        """Whether there is something to take."""
        self._is_due = False
        self._soon = asyncio.get_running_loop().call_soon

    def wake(self) -> None:
        """There is something to take."""
        self._is_waiting = True
        self.on_writable()

    async def run(self) -> str:
        """Until the stream ends; why it did. Raises only CancelledError."""
        try:
            self._call = await open_call(self._method, self)
        except (OSError, TimeoutError) as error:
            return f"UNAVAILABLE: {error or 'it does not answer'}"
        try:
            self.on_writable()
            return await self._call.ended
        finally:
            self._call.close()
            self._call = None

    def on_messages(self, messages: list[bytes]) -> None:
        read = self._read
        self._on_frames([read(data) for data in messages])

    def on_writable(self) -> None:
        if self._is_waiting and not self._is_due and self._call is not None and self._call.is_writable:
            self._is_due = True
            self._soon(self._write)

    def _write(self) -> None:
        self._is_due = False
        if self._call is not None and self._call.is_writable:
            self._is_waiting = False
            self._call.send(self._take().SerializeToString())
