"""The gRPC server of a process: its services, health, reflection, mutual TLS and bounds.

Handlers are wrapped by `Boundary`, so they raise the errors of `armature.runtime.errors` and never name a status.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from armature.runtime.addresses import join_host_port
from armature.runtime.boundary import Boundary, Guard, Read, refusing
from armature.runtime.channels import MAX_MESSAGE_BYTES
from armature.runtime.connection_age import ConnectionAge
from armature.runtime.errors import StartError
from armature.runtime.health import Health
from armature.runtime.lean_server import LeanServer, Open, Served, Stream, talking
from armature.runtime.tls import TlsFiles

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    # Without this a second server binds a taken port silently and gets every other connection.
    ("grpc.so_reuseport", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Notice clients that are gone without a word, and so cancel their calls.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Members ping every 10 s also on idle channels; the default takes that for an attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

# Streams that clients hold open count too. Beyond it calls are refused with RESOURCE_EXHAUSTED.
MAX_CONCURRENT_CALLS = 16_384

# For last frames and statuses to leave once everything is drained; long-lived streams never end by themselves.
STOP_GRACE_S = 0.25


class RpcServer:
    """Add services, start, stop. Health says NOT_SERVING until `set_serving(True)`."""

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        tls: TlsFiles | None = None,
        advertise_host: str = "",
        max_request_bytes: int = MAX_MESSAGE_BYTES,
        connection_age: ConnectionAge | None = None,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._tls = tls
        self._advertise_host = advertise_host or host
        self._boundary = Boundary()
        self._server = grpc.aio.server(
            interceptors=[self._boundary],
            options=[
                *SERVER_OPTIONS,
                ("grpc.max_receive_message_length", max_request_bytes),
                *(connection_age.options if connection_age else ()),
            ],
            maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
        )
        self._health = Health()
        self._names = [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        self._lean = LeanServer(max_request_bytes)
        self.port = 0
        """The port in use, once started."""
        self.stream_address = ""
        """Where methods that `stream_lean` was told of are answered as well, once started; empty if there are none."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    @property
    def address(self) -> str:
        """Where others reach this server, `host:port`."""
        return join_host_port(self._advertise_host, self.port)

    def add(self, register: Callable[[Any, grpc.aio.Server], None], servicer: object, service_name: str) -> None:
        """Serve one more service; before `start`. `service_name` is the full one, `armature.v1.Router`."""
        register(servicer, self._server)
        self._health.add(service_name)
        self._names.append(service_name)

    def stream_lean(self, method: str, handler: Stream, read: Read) -> None:
        """Answer a method that streams both ways also without grpcio, which is worth it where one call carries much;
        before `start`. `method` is its path, `/armature.v1.Router/Route`, `read` makes a request of its bytes."""
        self._lean.methods[method] = Served(self._boundary.streaming(method, handler), refusing(read))

    def talk_lean(self, method: str, begin: Open, read: Read) -> None:
        """Likewise a method whose messages are answered without waiting; `begin` is called for each call of it."""
        self.stream_lean(method, talking(begin), read)

    def guard(self, guard: Guard) -> None:
        """Have `guard` told every call's method and metadata first; it raises for those that it does not let in."""
        self._boundary.guard = guard

    async def start(self) -> None:
        """Listen; lean streams on the next port.

        Raises:
            StartError: a port is taken or the host is none of this machine.
        """
        reflection.enable_server_reflection([*self._names, reflection.SERVICE_NAME], self._server)
        address = join_host_port(self._host, self._wanted_port)
        _check_bindable(self._host, self._wanted_port)
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._tls.server_credentials())
        except RuntimeError as error:
            raise StartError(f"can't listen on {address}: set another --port") from error
        await self._server.start()
        if self._lean.methods:
            wanted, context = self._wanted_port and self._wanted_port + 1, self._tls and self._tls.server_context()
            port = await self._lean.start(self._host, wanted, context)
            self.stream_address = join_host_port(self._advertise_host, port)

    def set_serving(self, is_serving: bool) -> None:
        """What health checks are told."""
        self._health.set_serving(is_serving)

    async def wait_idle(self) -> None:
        """Return when no unary call is being handled; the caller bounds the wait."""
        await self._boundary.wait_idle()

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Refuse new calls, and cancel those that have not ended within `grace_s`."""
        await asyncio.gather(self._lean.stop(grace_s), self._server.stop(grace_s))


def _check_bindable(host: str, port: int) -> None:
    """Find out why a port can't be had: gRPC does not say, and prints lines of its own."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # As gRPC does: a port of connections that are just being forgotten is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        where = join_host_port(host, port)
        raise StartError(f"can't listen on {where} ({error.strerror}): set another --port or --host") from error
