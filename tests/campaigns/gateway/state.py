"""What a gateway holds, and that it holds no more when all clients are gone."""

import asyncio
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.support.cell import Cell
from tests.support.rest import until_at_rest

SETTLE_S = 60.0
REST_TIMEOUT_S = 240.0
"""For all that the campaign has asked for to end, on a machine that others use."""
STILL_S = 3.0
"""Memory that has not shrunk for so long is settled: gRPC frees what a connection had a while after it is gone."""
LAZILY_OPENED = 4
"""Connections to workers are made when they are first needed, each with a task or two; a leak is one per client."""


@dataclass(frozen=True, slots=True)
class State:
    """As the gateway's own metrics tell."""

    resident_mib: float
    open_fds: int
    tasks: int

    def figures(self) -> dict[str, float]:
        return asdict(self)


def resident_mib(cell: Cell) -> float:
    """The gateway's memory; it is not asked itself, so this is told also while it is busy."""
    pages = int(Path(f"/proc/{cell.services['gateway'].pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / (1 << 20), 1)


async def state_of(cell: Cell) -> State:
    metrics = await cell.services["gateway"].metrics()
    return State(
        resident_mib=resident_mib(cell),
        open_fds=int(metrics["process_open_fds"]),
        tasks=int(metrics["armature_event_loop_tasks"]),
    )


async def rested(cell: Cell, before: State | None = None, *, still_s: float = 0.0) -> State:
    """The state once nothing runs any more and memory has not shrunk for `still_s`; nothing may be left since `before`.

    Raises:
        AssertionError: workers have requests or blocks, or the gateway more tasks or descriptors than before.
    """
    await until_at_rest(cell, REST_TIMEOUT_S)
    state = await state_of(cell)
    give_up_s = time.monotonic() + SETTLE_S
    while before is not None and (
        state.tasks > before.tasks + LAZILY_OPENED or state.open_fds > before.open_fds + LAZILY_OPENED
    ):
        if time.monotonic() > give_up_s:
            raise AssertionError(f"something is left: {state}, before it was {before}; {_files(cell)} are open")
        await asyncio.sleep(0.25)
        state = await state_of(cell)
    return replace(state, resident_mib=await _settled_mib(cell, still_s))


async def _settled_mib(cell: Cell, still_s: float) -> float:
    least_mib, since_s = resident_mib(cell), time.monotonic()
    give_up_s = since_s + SETTLE_S
    while (now_s := time.monotonic()) < min(since_s + still_s, give_up_s):
        await asyncio.sleep(0.25)
        if (now_mib := resident_mib(cell)) < least_mib:
            least_mib, since_s = now_mib, now_s
    return least_mib


def _files(cell: Cell) -> list[str]:
    folder = Path(f"/proc/{cell.services['gateway'].pid}/fd")
    return sorted(str(path.readlink()) for path in folder.iterdir())
