"""uvicorn inside a process that already has an event loop, signals and a log of its own."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from armature.openai.serving.http.acceptor import Acceptor
from armature.openai.serving.http.certificate import Certificate
from armature.openai.serving.http.protocol import LEAST_BYTES_PER_S, WRITE_TIMEOUT_S, BoundedProtocol
from armature.openai.serving.http.seats import Seat, SeatOptions, Seats
from armature.openai.serving.http.spare_seats import SPARE_IDLE_TIMEOUT_S, told_to_come_back
from armature.runtime.addresses import join_host_port
from armature.runtime.errors import StartError

BACKLOG = 2048
IDLE_TIMEOUT_S = 75
"""For the first request of a connection, and from one request to the next."""


class HttpServer:
    """Listens from construction on, so that the port is known; serves while `run` runs.

    Raises:
        StartError: the address is taken, or is none of this machine's.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        certificate: Certificate | None = None,
        idle_timeout_s: int = IDLE_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        least_bytes_per_s: float = LEAST_BYTES_PER_S,
        reuse_port: bool = False,
        seats: SeatOptions | None = None,
    ) -> None:
        self._certificate = certificate
        self._socket = _listen(host, port, reuse_port=reuse_port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=partial(  # pyright: ignore[reportArgumentType]
                BoundedProtocol, write_timeout_s=write_timeout_s, least_bytes_per_s=least_bytes_per_s
            ),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",  # what clients do wrong is told to them: as warnings, they could fill a disk
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=idle_timeout_s,
            ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
        )
        tls = certificate.context if certificate else None
        self._server = _EmbeddedServer(config, Acceptor(self._socket, Seats(seats or SeatOptions()), tls))

    async def run(self) -> None:
        """Until `stop`; open answers are finished first."""
        async with asyncio.TaskGroup() as tasks:
            renewing = tasks.create_task(self._certificate.follow()) if self._certificate else None
            self._server.tasks = tasks
            await self._server.serve(sockets=[self._socket])
            if renewing is not None:
                renewing.cancel()

    async def started(self) -> None:
        """Return when requests are accepted."""
        await self._server.ready.wait()

    def stop(self, *, now: bool = False) -> None:
        """Accept nothing more; `now`: and drop what is open."""
        self._server.force_exit = now
        self._server.leave()


class _EmbeddedServer(uvicorn.Server):
    tasks: asyncio.TaskGroup
    """Of whoever has it serve."""

    def __init__(self, config: uvicorn.Config, acceptor: Acceptor) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._acceptor = acceptor
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """Instead of looking ten times a second for what a process of its own would have to notice."""
        await self._leaving.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Instead of servers that accept whoever comes."""
        self.servers = []
        self._acceptor.open(self.tasks, self._protocol)
        self.started = True
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._acceptor.close()
        await super().shutdown(sockets)

    def _protocol(self, seat: Seat, on_lost: Callable[[], None]) -> BoundedProtocol:
        make: type[BoundedProtocol] = self.config.http_protocol_class  # pyright: ignore[reportAssignmentType]
        protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        protocol.on_lost = on_lost
        if seat.reason is not None:
            protocol.timeout_keep_alive = SPARE_IDLE_TIMEOUT_S
            protocol.app = told_to_come_back(protocol.app, seat.reason)  # pyright: ignore[reportArgumentType]
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are the process's, which drains first


def bound_socket(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    """A TCP socket that has the address and does not listen yet.

    Raises:
        StartError: the address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections inherit it: without, a client that delays its acknowledgements waits 40 ms for a token.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise _not_to_be_had(host, port, error) from error
    return bound


def _listen(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    listener = bound_socket(host, port, reuse_port=reuse_port)
    try:
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _not_to_be_had(host, port, error) from error
    return listener


def _not_to_be_had(host: str, port: int, error: OSError) -> StartError:
    address = join_host_port(host, port)
    return StartError(f"can't serve HTTP on {address} ({error.strerror}): free the port or set another --http-port")
