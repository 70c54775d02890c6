"""Child processes: each in its own session, logging to a file, and never outliving the process that started it.

Not a supervisor: a child that exits stays dead until whoever owns it starts another.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from armature.runtime.errors import StartError

_SHIM = Path(__file__).with_name("die_with_parent.py")
_POLL_S = 0.02
# What of a log goes into an error message.
_TAIL_BYTES = 1500


class Child:
    """A running command.

    `address` is where it serves (`host:port`), empty if nobody said; `source` and `version` say which program it is.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
        self.name = name
        self.address = ""
        self.source = ""
        self.version = ""
        self.log_path = log_path
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, the negative signal that killed it, or None while it runs."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait until it has exited, and return its exit status."""
        try:
            exited = os.pidfd_open(self.pid)
        except OSError:  # already reaped
            return self._process.wait()
        try:
            await _readable(exited)
        finally:
            os.close(exited)
        return self._process.wait()

    async def stop(self, deadline_s: float = 5.0) -> int:
        """Ask it to end, kill it after `deadline_s`, and return its exit status. A second call does no harm."""
        self.signal(signal.SIGTERM)
        # A stopped process would not see the request.
        self.signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(deadline_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End it at once, as `kill -9` does, and return its exit status."""
        self.signal(signal.SIGKILL)
        return await self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has already exited."""
        self._process.send_signal(number)

    def log_tail(self) -> str:
        """The end of what it has printed."""
        with contextlib.suppress(OSError):
            return self.log_path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    async def line(self, start: str, deadline_s: float) -> str:
        """Wait for a line of its output that begins with `start`, and return the line.

        Raises:
            StartError: it exited, or printed no such line within `deadline_s`.
        """
        give_up_at = time.monotonic() + deadline_s
        while True:
            returncode = self.returncode
            for line in self.log_path.read_text(errors="replace").splitlines(keepends=True):
                if line.startswith(start) and line.endswith("\n"):
                    return line.rstrip("\n")
            if returncode is not None:
                raise StartError(f"{self.name} exited with status {returncode}: {self.log_tail()}")
            if time.monotonic() > give_up_at:
                raise StartError(f"{self.name} did not start within {deadline_s:g} s: {self.log_tail()}")
            await asyncio.sleep(_POLL_S)


def spawn(name: str, command: Sequence[str], *, log_path: Path, env: Mapping[str, str] | None = None) -> Child:
    """Start a command; its output goes to `log_path`, replacing what was there. `env` adds to our environment.

    The child is killed when the calling thread ends: call it from the main thread.

    Raises:
        StartError: the log can't be written.
    """
    try:
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
    except OSError as error:
        raise StartError(f"can't start {name}: {error}") from error
    return Child(name, process, log_path)


def tethered(command: Sequence[str]) -> list[str]:
    """The command, killed when the thread that runs it ends: for whoever starts it in another way than `spawn`."""
    return [sys.executable, "-I", "-S", str(_SHIM), str(os.getpid()), *command]


def is_listening(pid: int, port: int) -> bool:
    """Whether the process itself has a TCP socket that listens on `port`: a stranger's on the same port is not its own.

    True where the kernel doesn't tell (no /proc).
    """
    try:
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
        held = {os.readlink(entry) for entry in os.scandir(f"/proc/{pid}/fd")}  # noqa: PTH115
    except OSError:
        return sys.platform != "linux"
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    # Columns of proc(5): 1 is the local address, 3 the state (0A is LISTEN), 9 the inode.
    inodes = {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}
    return any(f"socket:[{inode}]" in held for inode in inodes)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(descriptor, lambda: ready.done() or ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
