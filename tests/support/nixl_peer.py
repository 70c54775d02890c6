"""A NIXL agent over a pool of known bytes, in a process that a test may stop or kill. Block b is full of b."""

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from armature.transfer.nixl_agent import NixlAgent
from armature.transfer.region import Region

START_TIMEOUT_S = 60.0


def pool(num_blocks: int, block_bytes: int) -> tuple[NDArray[np.uint8], Region]:
    """Zeroed memory, and where it lies; the array must outlive every agent that has the region."""
    memory = np.zeros((num_blocks, block_bytes), np.uint8)
    return memory, Region(memory.ctypes.data, block_bytes, num_blocks)


@dataclass
class Peer:
    process: asyncio.subprocess.Process
    metadata: bytes
    region: Region

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


@asynccontextmanager
async def nixl_peer(num_blocks: int = 64, block_bytes: int = 65536, **env: str) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.nixl_peer", str(num_blocks), str(block_bytes),
        env={**os.environ, **env}, start_new_session=True, stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            told = json.loads(await process.stdout.readline())
        yield Peer(process, base64.b64decode(told["metadata"]), Region(told["address"], block_bytes, num_blocks))
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def _serve(num_blocks: int, block_bytes: int) -> None:
    memory, region = pool(num_blocks, block_bytes)
    memory[:] = np.arange(num_blocks, dtype=np.uint8)[:, None]
    agent = await NixlAgent.start(region)
    with agent.attending():
        told = {"metadata": base64.b64encode(agent.metadata).decode(), "address": region.base_address}
        print(json.dumps(told), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    await agent.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
