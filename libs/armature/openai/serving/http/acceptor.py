"""Takes in a port's connections, as many as there are seats, before anything is spent on them.

asyncio's own servers accept whatever comes and begin TLS with it; then it is too late to be sparing.
"""

import asyncio
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable

from armature.openai.serving.http.seats import Seat, Seats
from armature.openai.serving.metrics import CONNECTIONS, CONNECTIONS_REFUSED

log = logging.getLogger(__name__)

BATCH = 64
"""Accepted in one turn of the event loop, at most."""
HANDSHAKE_TIMEOUT_S = 10.0
PAUSE_S = 1.0
"""Without descriptors or memory, nothing is accepted for so long."""
OTHER_DESCRIPTORS = 1024
"""Besides clients': streams to workers and routers, etcd, Redis, files."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

MakeProtocol = Callable[[Seat, Callable[[], None]], asyncio.Protocol]
"""For a connection on this seat; calls back when the connection is lost."""


class Acceptor:
    """Accepts on `listener`, which does not block, from `open` to `close`. `tasks` own what waits for handshakes."""

    def __init__(self, listener: socket.socket, seats: Seats, tls: ssl.SSLContext | None) -> None:
        self._listener = listener
        self._seats = seats
        self._tls = tls
        self._pause: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[None]] = set()

    def open(self, tasks: asyncio.TaskGroup, make: MakeProtocol) -> None:
        self._loop, self._tasks, self._make = asyncio.get_running_loop(), tasks, make
        _allow_descriptors(self._seats.options.max_connections + OTHER_DESCRIPTORS)
        self._resume()

    def close(self) -> None:
        """Accept nothing more and drop what has not begun."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener.fileno())
        for task in self._beginning:
            task.cancel()

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                log.error("no more connections for %.0f s: %s", PAUSE_S, error.strerror)
                self._loop.remove_reader(self._listener.fileno())
                self._pause = self._loop.call_later(PAUSE_S, self._resume)
                return
            seat = self._seats.take(address[0])
            if not isinstance(seat, Seat):
                CONNECTIONS_REFUSED.labels(seat).inc()
                connection.close()
                continue
            if seat.reason is not None:
                CONNECTIONS_REFUSED.labels(seat.reason).inc()
            CONNECTIONS.inc()
            connection.setblocking(False)
            task = self._tasks.create_task(self._begin(connection, seat), name="connection")
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket, seat: Seat) -> None:
        """Return when the connection can be used, or never will."""

        def leave() -> None:
            if seat.leave():
                CONNECTIONS.dec()

        try:
            await self._loop.connect_accepted_socket(
                lambda: self._make(seat, leave), connection, ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if self._tls else None,
            )  # fmt: skip
        except OSError:  # also what TLS finds wrong
            leave()
            connection.close()
        except BaseException:
            leave()
            connection.close()
            raise


def _allow_descriptors(wanted: int) -> None:
    """Have the process open so many files, if it may: where shells start it, 1024 are usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        log.warning(
            "only %d files can be open here, too few for max_connections: raise `ulimit -n` to %d", most, wanted
        )
