"""Keeps the processes of a cell running: starts them, starts crashed ones again, stops them in order.

One task owns each process. A process that fails at the start ends the cell; one that crashes later is started again,
with growing delays, for as long as the cell runs.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from enum import Enum

from armature.cli.launch import Launch, Running, exit_reason
from armature.runtime.backoff import Backoff
from armature.runtime.errors import StartError

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 15.0
# A process that has run this long had started well: its crash is a new one.
STEADY_S = 30.0
# Beyond the time that a service takes to drain: what it needs to leave the cell and close.
STOP_MARGIN_S = 5.0


class State(Enum):
    """Of one process."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    CRASHED = "crashed"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Supervised:
    """One process, through all its lives. `told` is called after every change of `state`."""

    def __init__(self, name: str, kind: str, launch: Launch, told: Callable[["Supervised"], None]) -> None:
        self.name = name
        self.kind = kind
        self.state = State.WAITING
        self.running: Running | None = None
        self.restarts = 0
        self.has_served = False
        self.last_error = ""
        self._launch = launch
        self._told = told
        self._ready_at_s = 0.0

    async def start(self) -> None:
        """Launch it and wait until it serves.

        Raises:
            StartError: it does not; nothing is left running.
        """
        self._become(State.STARTING)
        try:
            self.running = await self._launch()
        except StartError as error:
            self.last_error = str(error)
            self._become(State.CRASHED)
            raise
        self._ready_at_s = time.monotonic()
        self.has_served = True
        self._become(State.READY)

    async def keep(self) -> None:
        """Start it again whenever it ends. Runs until cancelled."""
        backoff = Backoff(FIRST_DELAY_S, MAX_DELAY_S)
        while True:
            if self.running:
                await self._until_gone(self.running)
                if time.monotonic() - self._ready_at_s > STEADY_S:
                    backoff.reset()
            await asyncio.sleep(backoff.next_s())
            self.restarts += 1
            try:
                await self.start()
            except StartError:
                continue  # `start` has told; the next attempt comes after a longer delay

    async def stop(self, deadline_s: float) -> None:
        """Ask it to end and wait; kill it after `deadline_s`. Nothing happens if it does not run."""
        if self.running is None:
            return
        self._become(State.STOPPING)
        await self.running.child.stop(deadline_s)
        self.running = None
        self._become(State.STOPPED)

    async def kill(self) -> None:
        """End it at once. Nothing happens if it does not run."""
        if self.running is None:
            return
        await self.running.child.kill()
        self.running = None
        self._become(State.STOPPED)

    async def _until_gone(self, running: Running) -> None:
        await running.child.wait()
        self.running = None
        self.last_error = f"{self.name} {exit_reason(running.child)}"
        self._become(State.CRASHED)

    def _become(self, state: State) -> None:
        self.state = state
        self._told(self)


class Cell:
    """All processes of a cell, in groups; groups are stopped in the reverse order of their starting.

    `tasks` owns the tasks that keep the processes running; leave it only after `stop`.
    """

    def __init__(self, tasks: asyncio.TaskGroup, drain_timeout_s: float) -> None:
        self._tasks = tasks
        self._groups: list[Sequence[Supervised]] = []
        self._keepers: dict[Supervised, asyncio.Task[None]] = {}
        self._stop_deadline_s = drain_timeout_s + STOP_MARGIN_S

    @property
    def processes(self) -> list[Supervised]:
        return [process for group in self._groups for process in group]

    async def start(self, *groups: Sequence[Supervised]) -> None:
        """Start all these at once; keep them running as soon as all of them serve.

        Raises:
            StartError: one of them does not start. Others may run: `stop` ends them.
        """
        self._groups += groups
        started = [process for group in groups for process in group]
        try:
            async with asyncio.TaskGroup() as starting:
                for process in started:
                    starting.create_task(process.start())
        except* StartError as errors:
            raise _first(errors) from None
        for process in started:
            self._keepers[process] = self._tasks.create_task(process.keep(), name=process.name)

    def add(self, process: Supervised, group: list[Supervised]) -> None:
        """Start one more in a group that `start` was given, and keep it running even if its start fails."""
        group.append(process)
        self._keepers[process] = self._tasks.create_task(_begin(process), name=process.name)

    async def remove(self, process: Supervised, group: list[Supervised]) -> None:
        """Let one drain and end; it is not started again, and forgotten once it has ended."""
        await _end_all([self._keepers.pop(process)])
        try:
            await process.stop(self._stop_deadline_s)
        finally:
            group.remove(process)

    async def stop(self) -> None:
        """End all of them. Cancelled, it kills what is left."""
        try:
            await _end_all(list(self._keepers.values()))
            for group in reversed(self._groups):
                await asyncio.gather(*(process.stop(self._stop_deadline_s) for process in group))
        finally:
            await asyncio.gather(*(process.kill() for process in self.processes))


async def _begin(process: Supervised) -> None:
    with contextlib.suppress(StartError):  # `start` has told; `keep` tries again
        await process.start()
    await process.keep()


async def _end_all(keepers: Sequence[asyncio.Task[None]]) -> None:
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


def _first(errors: BaseExceptionGroup[StartError]) -> StartError:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, StartError)
    return found
