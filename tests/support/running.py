"""A service process that a test starts, signals and reads: stdout line by line, stderr as a whole."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from armature.runtime.children import tethered

READY_TIMEOUT_S = 30.0


@dataclass
class Running:
    process: asyncio.subprocess.Process
    _stderr: Path
    member_id: str = ""
    addresses: dict[str, str] | None = None

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def address(self, name: str = "grpc") -> str:
        assert self.addresses is not None, f"never ready:\n{self.stderr}"
        return self.addresses[name]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def exit_status(self, timeout_s: float = 20.0) -> int:
        async with asyncio.timeout(timeout_s):
            return await self.process.wait()

    async def read_ready(self) -> None:
        """Read the READY line; its absence shows in `addresses`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            words = (await self.process.stdout.readline()).decode().split()
        if words[:1] == ["READY"]:
            self.member_id = words[2]
            self.addresses = dict(word.split("=", 1) for word in words[3:])


@asynccontextmanager
async def running(module: str, *flags: str, stderr: Path, ready: bool = True) -> AsyncIterator[Running]:
    """Start `python -m module flags`, wait for its READY line (if `ready`), and kill what is left of it at the end."""
    with stderr.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *tethered([sys.executable, "-m", module, *flags]),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=file, start_new_session=True,
        )  # fmt: skip
    child = Running(process, stderr)
    try:
        if ready:
            await child.read_ready()
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
