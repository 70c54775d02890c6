"""Starts one process of a cell and waits until it says that it serves. Nothing is left running if it does not."""

import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from armature.cli.ready import PREFIX, Ready, parse_ready
from armature.runtime.children import Child, spawn
from armature.runtime.errors import StartError
from armature.runtime.processes import start_etcd, start_valkey

_LEAVE_S = 5.0
"""For a process that is not wanted any more before it serves."""


@dataclass(frozen=True, slots=True)
class Running:
    """A process that serves."""

    child: Child
    ready: Ready


Launch = Callable[[], Awaitable[Running]]


@dataclass(slots=True)
class ServiceLauncher:
    """Runs a command until its READY line.

    A gateway on `--http-port=0` chooses a port at its first start; it gets the same one back when it is started again.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    log_path: Path
    timeout_s: float
    _http_port: str = ""

    async def __call__(self) -> Running:
        """Raises StartError: the process ended, or was not ready in time."""
        _keep_previous(self.log_path)
        child = spawn(self.name, self._command(), log_path=self.log_path, env={"PYTHONUNBUFFERED": "1", **self.env})
        try:
            ready = parse_ready(await child.line(PREFIX, self.timeout_s))
        except (StartError, ValueError) as error:
            reason = f"was not ready after {self.timeout_s:g} s" if child.returncode is None else exit_reason(child)
            await child.kill()
            raise StartError(f"{self.name} {reason} (log: {self.log_path})") from error
        except BaseException:
            # It may have registered already: killed, it would be sent requests until its lease has ended.
            await _end(child)
            raise
        child.address = ready.grpc
        self._http_port = ready.http.rpartition(":")[2]
        return Running(child, ready)

    def _command(self) -> list[str]:
        fixed = {"--http-port=0": f"--http-port={self._http_port}"} if self._http_port else {}
        return [fixed.get(part, part) for part in self.command]


@dataclass(slots=True)
class ServerLauncher:
    """Runs one of the runtime's embedded servers; started again, it comes back on the same port, with its data."""

    kind: str
    """etcd or valkey."""
    data_dir: Path
    _port: int = 0

    async def __call__(self) -> Running:
        """Raises StartError: no such server is installed, or it does not answer."""
        start = start_etcd if self.kind == "etcd" else start_valkey
        child = await start(self.data_dir, port=self._port)
        self._port = int(child.address.rpartition(":")[2])
        return Running(child, Ready(self.kind, "", grpc=child.address))


async def _end(child: Child) -> None:
    """Have it leave the cell, for as long as nobody cancels that."""
    try:
        await child.stop(_LEAVE_S)
    finally:
        child.signal(signal.SIGKILL)


def exit_reason(child: Child) -> str:
    """How a process that is gone has ended, with the last line that it printed."""
    status = child.returncode or 0
    if status < 0:
        return f"was killed by signal {-status}"
    lines = [line.strip() for line in child.log_tail().splitlines() if line.strip()]
    return f"exited with status {status}: {lines[-1] if lines else 'it printed nothing'}"


def _keep_previous(log_path: Path) -> None:
    """The log of the run that crashed is the one that people want to read."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists():
        shutil.move(log_path, log_path.with_suffix(".log.1"))
