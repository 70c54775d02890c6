"""A real S3 server for tests, rclone's, over a directory: killed, frozen and started again at its address."""

import asyncio
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from armature.runtime.children import is_listening
from armature.runtime.processes import Child, free_port, spawn
from armature.runtime.s3_client import S3Bucket, S3Client

ACCESS_KEY, SECRET_KEY = "a-key", "a-secret"
BUCKET = "blocks"
_START_DEADLINE_S = 20.0


class S3Server:
    """Has one bucket; `folder` holds its objects as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / BUCKET
        self._root = folder
        self._port = 0
        self._child: Child | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def settings(self) -> dict[str, str]:
        """What a kv-offload has to be told."""
        return {
            "remote": f"s3://{BUCKET}/tests",
            "s3_endpoint": self.endpoint,
            "s3_access_key": ACCESS_KEY,
            "s3_secret_key": SECRET_KEY,
        }

    @property
    def flags(self) -> list[str]:
        """Likewise, on its command line."""
        return [f"--{key.replace('_', '-')}={value}" for key, value in self.settings.items()]

    def client(self, timeout_s: float = 5.0, **fields: str) -> S3Client:
        """One that sees what a kv-offload with these settings sees."""
        told = {key.removeprefix("s3_"): value for key, value in self.settings.items()}
        return S3Client(S3Bucket(**{"url": told.pop("remote"), **told, **fields}), timeout_s=timeout_s)

    async def start(self) -> None:
        """At the address that it has had; the data are still there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        program = shutil.which("rclone", path=str(Path(sys.executable).parent)) or "rclone"
        port = self._port or free_port()
        # A cache in front of the files would delay what is written by a second.
        caches = ("--vfs-write-wait", "0", "--vfs-read-wait", "0", "--poll-interval", "0")
        keys = ("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}")
        line = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", *keys, *caches, "--config", "", str(self._root)]
        self._child = spawn("rclone", [*line, "--log-level", "NOTICE"], log_path=self._root.with_suffix(".log"))
        async with asyncio.timeout(_START_DEADLINE_S):
            while not is_listening(self._child.pid, port):
                assert self._child.returncode is None, self._child.log_tail()
                await asyncio.sleep(0.02)
        self._port = port

    async def kill(self) -> None:
        if self._child is not None:
            await self._child.kill()

    async def restart(self) -> None:
        """It forgets what it has kept in mind of the files."""
        await self.kill()
        await self.start()

    def freeze(self) -> None:
        assert self._child is not None
        self._child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._child is not None
        self._child.signal(signal.SIGCONT)

    def objects(self) -> list[Path]:
        """The files of all that is stored."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@asynccontextmanager
async def s3_server(folder: Path) -> AsyncIterator[S3Server]:
    server = S3Server(folder)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
