"""gRPC clients that do not take their answers are given up: one timer for all, since one per write would cost too much.

gRPC does not tell when a client is behind; over HTTP the connection does.
"""

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class WriteWatch:
    """Looks after its `writers` while `run` runs."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.writers: set[StreamWrites] = set()
        self.now_s = asyncio.get_running_loop().time

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._timeout_s / 4)
            since_s = self.now_s() - self._timeout_s
            for writer in [*self.writers]:
                if writer.writing_since_s is not None and writer.writing_since_s <= since_s:
                    log.info("a client did not take its answer within %.1f s", self._timeout_s)
                    writer.give_up()


class StreamWrites:
    """The writes of one gRPC stream, whose handler this surrounds; giving up cancels the call.

    gRPC writes what a handler yields while that is suspended, so the time is taken around each `yield`.
    """

    __slots__ = ("__weakref__", "_task", "_watch", "writing_since_s")

    def __init__(self, watch: WriteWatch) -> None:
        self.writing_since_s: float | None = None
        """Set while a write waits for the client, as the event loop counts."""
        self._watch = watch
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._watch.writers.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._watch.writers.discard(self)

    def begin(self) -> None:
        self.writing_since_s = self._watch.now_s()

    def end(self) -> None:
        self.writing_since_s = None

    def give_up(self) -> None:
        """End the writing, if it still goes on."""
        if self._task is not None:
            self._task.cancel()
