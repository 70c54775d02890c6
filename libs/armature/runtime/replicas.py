"""Several processes that do the same, each a member of its own, under one that only watches them.

One that dies is started again; one that can't even start ends them all, since what is wrong is wrong for every one.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

import uvloop

from armature.runtime.children import tethered
from armature.runtime.errors import StartError

log = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0
STOP_MARGIN_S = 5.0
"""What stopping takes besides draining."""


class Replicas:
    """Runs `count` processes until told to stop, or until one can't start.

    `command` gives that of each by its number; it prints a READY line. `on_ready` gets the words of these lines, once
    all have come. When told to stop, processes have `drain_timeout_s` for it.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        count: int,
        *,
        drain_timeout_s: float,
        on_ready: Callable[[list[list[str]]], None],
    ) -> None:
        self._command = command
        self._count = count
        self._patience_s = drain_timeout_s + STOP_MARGIN_S
        self._on_ready = on_ready
        self._running: set[asyncio.subprocess.Process] = set()
        self._is_stopping = asyncio.Event()
        self._ready: list[list[str]] = []
        self._has_failed = False
        """Whether one did not stop as it was told."""

    async def run(self) -> int:
        """The exit status.

        Raises:
            StartError: one ended before it was ready.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(self._count):
                    tasks.create_task(self._keep(number))
        except* StartError as group:
            raise group.exceptions[0] from None
        return int(self._has_failed)

    async def _keep(self, number: int) -> None:
        """One of them, again and again."""
        try:
            while not self._is_stopping.is_set():
                process = await self._start(number)
                status = await process.wait()
                self._running.discard(process)
                if self._is_stopping.is_set():
                    self._has_failed |= status != 0
                    return
                log.error("process %d has ended with status %d and is started again", process.pid, status)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_stopping.wait(), RESTART_PAUSE_S)
        finally:
            if not self._is_stopping.is_set():
                self._stop(signal.SIGTERM)
            await asyncio.gather(*(process.wait() for process in self._running))

    async def _start(self, number: int) -> asyncio.subprocess.Process:
        """One that is ready, or was told to stop before."""
        process = await asyncio.create_subprocess_exec(
            *tethered(self._command(number)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._running.add(process)
        if self._is_stopping.is_set():
            process.terminate()
        assert process.stdout is not None
        words = (await process.stdout.readline()).decode().split()
        if words[:1] == ["READY"]:
            self._ready.append(words)
            if len(self._ready) == self._count:
                self._on_ready(self._ready)
        elif not self._is_stopping.is_set():
            raise StartError(f"process {number} could not start, see above")
        return process

    def _stop(self, number: signal.Signals) -> None:
        if not self._is_stopping.is_set():
            self._is_stopping.set()
            asyncio.get_running_loop().call_later(self._patience_s, self._send, signal.SIGKILL)
        self._send(number)

    def _send(self, number: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.send_signal(number)


def run_replicas(make: Callable[[], Replicas]) -> int:
    """Run them on an event loop of their own; return the exit status. `make` is called on the loop.

    Raises:
        StartError: one ended before it was ready.
    """

    async def run() -> int:
        return await make().run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())
