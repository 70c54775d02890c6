"""The two systems whose front doors `gateway.py` compares, each in front of workers that compute nothing.

Ours is a gateway with a router and kv-index; theirs is Dynamo's frontend, which has its router inside, and its mocker.
Both serve the model in the same directory by the same number of workers with blocks of the same size.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from armature.runtime.processes import free_port, start_etcd
from tests.support.cell import running_cell
from tests.support.cpu_time import cpu_s

MODEL = "bench"
WORKERS, BLOCK_SIZE, NUM_BLOCKS, MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 4, 64, 16384, 256, 8192
START_DEADLINE_S = 120.0
SPEED_UP = 1_000_000
"""Of Dynamo's mocker: so much that its steps take no time."""
MOCKER_STEP_S = 0.0062
"""What a step of its few answers takes without that."""

# Dynamo's listener leaves Nagle's algorithm on, so that a client that delays its acknowledgements waits 40 ms for the
# end of every stream. Measured without that, or the comparison would be of nothing else.
NODELAY_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
int accept4(int listener, struct sockaddr *address, socklen_t *length, int flags) {
    static int (*next)(int, struct sockaddr *, socklen_t *, int);
    if (!next) next = (int (*)(int, struct sockaddr *, socklen_t *, int))dlsym(RTLD_NEXT, "accept4");
    int connection = next(listener, address, length, flags), on = 1;
    if (connection >= 0) setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return connection;
}
"""


@dataclass(frozen=True, slots=True)
class Front:
    """A running system: where it takes requests, and the processes to be charged, by what they do."""

    address: str
    pids: Mapping[str, int]
    notes: str = ""

    def cpu_s(self) -> dict[str, float]:
        """Processor time of each process so far, of threads that have ended too."""
        return {part: cpu_s(pid) for part, pid in self.pids.items()}


@asynccontextmanager
async def armature_front(folder: Path, model: Path, pace_s: float) -> AsyncIterator[Front]:
    """Our gateway and router before simulated workers, which make a token every `pace_s`, 0: as fast as they can."""
    etcd = await start_etcd(folder / "etcd")
    flags = (
        "--model", str(model), "--model-name", MODEL, "--block-size", str(BLOCK_SIZE), "--num-blocks", str(NUM_BLOCKS),
        "--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS),
        "--pace-s", str(pace_s),
    )  # fmt: skip
    try:
        async with running_cell(
            folder / "cell", etcd.address, prefill=0, decode=0, fleets=(WORKERS,), worker_flags=flags
        ) as cell:
            gateway, router = cell.services["gateway"], cell.services["router"]
            address = gateway.addresses["http"]
            await _serves(address)
            yield Front(address, {"gateway": gateway.pid, "router": router.pid})
    finally:
        await etcd.stop()


@asynccontextmanager
async def dynamo_front(folder: Path, model: Path, pace_s: float, python: Path) -> AsyncIterator[Front]:
    """Dynamo's frontend before its mocker at the same pace, run by the Python that Dynamo is installed for."""
    folder.mkdir(parents=True)
    shim = _nodelay_shim(folder)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DYN_", "NATS_", "PYTHON"))},
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DYN_LOG": "error", "DYN_FILE_KV": str(folder / "kv"),
        "DYN_TCP_RPC_HOST": "127.0.0.1", "DYN_TCP_RESPONSE_STREAM_HOST": "127.0.0.1",
    }  # fmt: skip
    port = free_port()
    discovery = ("--discovery-backend", "file")
    mocker = (
        "dynamo.mocker", *discovery, "--model-path", str(model), "--model-name", MODEL, "--num-workers", str(WORKERS),
        "--block-size", str(BLOCK_SIZE), "--num-gpu-blocks-override", str(NUM_BLOCKS), "--max-num-seqs",
        str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS), "--speedup-ratio", str(SPEED_UP),
        *(("--decode-speedup-ratio", str(MOCKER_STEP_S / pace_s / SPEED_UP)) if pace_s else ()),
    )  # fmt: skip
    frontend = (
        "dynamo.frontend", *discovery, "--http-host", "127.0.0.1", "--http-port", str(port), "--router-mode", "kv",
        "--tokenizer", "fastokens",
    )  # fmt: skip
    notes = "" if shim else "no C compiler: its Nagle's algorithm is on"
    async with _running(python, mocker, env, folder / "mocker.log"):
        preload = {"LD_PRELOAD": str(shim)} if shim else {}
        async with _running(python, frontend, env | preload, folder / "frontend.log") as process:
            await _serves(f"127.0.0.1:{port}")
            yield Front(f"127.0.0.1:{port}", {"frontend": process.pid}, notes)


def _nodelay_shim(folder: Path) -> Path | None:
    """A library that sets TCP_NODELAY on what a process accepts; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = folder / "nodelay.c", folder / "nodelay.so"
    source.write_text(NODELAY_SOURCE)
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@asynccontextmanager
async def _running(
    python: Path, module: tuple[str, ...], env: Mapping[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            python, "-m", *module, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(10.0):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _serves(address: str) -> None:
    """Return when the model can be asked for."""
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(START_DEADLINE_S):
        while True:
            with suppress(httpx.TransportError):
                if MODEL in (await client.get(f"http://{address}/v1/models")).text:
                    return
            await asyncio.sleep(0.1)
