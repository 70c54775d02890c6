"""Client channels to the other members, one per address.

A channel reconnects by itself; the options below bound how long a silent peer goes unnoticed and how long a returned
one is left alone.
"""

import asyncio

import grpc

from armature.runtime.lean_call import Method
from armature.runtime.tls import TlsFiles

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Servers answer pings that come faster than every 5 s by closing the connection.
    ("grpc.keepalive_time_ms", 10_000),
    # `grpc.keepalive_timeout_ms` has no effect in gRPC 1.85; this is the option that ends a connection to a dead peer.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The defaults leave a returned peer alone for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Channels to one address would otherwise share a connection, and so its failures, with a discarded one.
    ("grpc.use_local_subchannel_pool", 1),
)


class ChannelPool:
    """Hands out one channel per address and owns them all."""

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self._credentials = tls.channel_credentials() if tls else None
        self._context = tls.client_context() if tls else None
        self._channels: dict[str, grpc.aio.Channel] = {}

    def get(self, address: str) -> grpc.aio.Channel:
        """The channel to `address`; it connects at its first call."""
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._open(address)
        return channel

    def method(self, address: str, path: str) -> Method:
        """A method to be called without a channel, see `armature.runtime.lean_call`."""
        name = self._tls.name if self._tls else ""
        return Method(address, path, MAX_MESSAGE_BYTES, tls=self._context, tls_name=name)

    async def discard(self, address: str) -> None:
        """Close the channel to a member that is gone; calls on it are cancelled."""
        channel = self._channels.pop(address, None)
        if channel is not None:
            await channel.close()

    async def close(self) -> None:
        """Close every channel; calls on them are cancelled."""
        channels = list(self._channels.values())
        self._channels.clear()
        await asyncio.gather(*(channel.close() for channel in channels))

    def _open(self, address: str) -> grpc.aio.Channel:
        options = list[tuple[str, int | str]](CHANNEL_OPTIONS)
        if self._tls is None or self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        options += self._tls.channel_options()
        return grpc.aio.secure_channel(address, self._credentials, options=options)
