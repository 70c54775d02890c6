"""`armature status` and `armature down`: what is done to a cell that another process runs."""

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

from rich.console import Console

from armature.cli.observe import Observer
from armature.cli.rows import Row, rows
from armature.cli.show import plain, table
from armature.cli.state import CellDirectory, CellState
from armature.runtime.errors import StartError

# Two looks make a rate.
RATE_INTERVAL_S = 0.5
POLL_S = 0.05
# A file or a pipe has no width: everything fits.
FILE_WIDTH = 200


def find_cell(directory: Path) -> CellState:
    """The cell that runs there.

    Raises:
        StartError: none does.
    """
    state = CellDirectory(directory).read()
    if state is None:
        raise StartError(
            f"no cell runs in {directory}: start one with `armature up`, or see --namespace and --state-dir"
        )
    return state


def status(directory: Path, console: Console) -> int:
    """Print the cell's table; the exit status is 0 if all processes are well, else 1."""
    state = find_cell(directory)
    seen = asyncio.run(_look_twice(state))
    serves = f"{state.url}, gRPC {state.grpc}" if state.url else "not serving yet"
    plain(console, [f"cell {state.namespace}, model {state.model}, {serves}, etcd {state.etcd or '-'}"])
    wide = console if console.is_terminal else Console(file=console.file, width=FILE_WIDTH)
    wide.print(table(seen, wide.width))
    return 0 if state.url and all(row.is_well for row in seen) else 1


def down(directory: Path, console: Console, timeout_s: float) -> int:
    """Stop the cell and wait until it is gone; kill it after `timeout_s`, which kills all its processes."""
    state = find_cell(directory)
    _signal(state.pid, signal.SIGTERM)
    give_up_at = time.monotonic() + timeout_s
    is_killed = False
    while CellDirectory(directory).is_running():
        if time.monotonic() > give_up_at and not is_killed:
            _signal(state.pid, signal.SIGKILL)
            is_killed = True
        time.sleep(POLL_S)
    how = f"killed after {timeout_s:g} s" if is_killed else "stopped"
    plain(console, [f"cell {state.namespace} {how}"])
    return 1 if is_killed else 0


async def _look_twice(state: CellState) -> list[Row]:
    if not state.etcd:
        return rows(state.processes)  # still starting
    observer = Observer(state.etcd, state.namespace, state.tls)
    try:
        await observer.look(state.processes)
        await asyncio.sleep(RATE_INTERVAL_S)
        return await observer.look(state.processes)
    finally:
        await observer.close()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
