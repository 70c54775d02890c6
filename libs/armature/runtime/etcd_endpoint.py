"""One etcd member: a channel that opens when it is first needed, and the stubs on it."""

import asyncio
from functools import cached_property

import grpc

from armature.runtime.channels import CHANNEL_OPTIONS
from armature.runtime.etcd_errors import EtcdError
from armature.runtime.tls import TlsFiles
from armature.third_party.etcd.v3 import etcd_pb2_grpc as rpc

# etcd answers pings on a connection without calls by closing it; it has a watch or a call every few seconds anyway.
# What goes to and fro is small: to probe how much the connection could carry at once would only wake idle processes.
_OPTIONS = dict(CHANNEL_OPTIONS) | {"grpc.keepalive_permit_without_calls": 0, "grpc.http2.bdp_probe": 0}


class Endpoint:
    """The member at `address`, a `host:port`; a scheme in front is dropped.

    Raises:
        EtcdError: `address` is no `host:port`.
    """

    def __init__(self, address: str, tls: TlsFiles | None = None) -> None:
        self.address = address.strip().rpartition("://")[2].rstrip("/")
        host, _, port = self.address.rpartition(":")
        if not host or not port.isdecimal():
            raise EtcdError(f"`etcd` names {address!r}, which is not host:port")
        self._tls = tls

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        options = list[tuple[str, int | str]](_OPTIONS.items())
        if self._tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        options += self._tls.channel_options()
        return grpc.aio.secure_channel(self.address, self._tls.channel_credentials(), options=options)

    # One stub a service for the life of the channel: making one costs more than a call's own bookkeeping.
    @cached_property
    def kv(self) -> "rpc.KVAsyncStub":
        return rpc.KVStub(self.channel)

    @cached_property
    def lease(self) -> "rpc.LeaseAsyncStub":
        return rpc.LeaseStub(self.channel)

    @cached_property
    def watch(self) -> "rpc.WatchAsyncStub":
        return rpc.WatchStub(self.channel)

    @cached_property
    def auth(self) -> "rpc.AuthAsyncStub":
        return rpc.AuthStub(self.channel)

    async def is_reachable(self, timeout_s: float) -> bool:
        """Whether a connection stands, or can be made within `timeout_s`. Nothing is sent."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._settled() is grpc.ChannelConnectivity.READY
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Cancel the calls that are left and close the connection, if one was ever opened."""
        if "channel" in self.__dict__:
            await self.channel.close()

    async def _settled(self) -> grpc.ChannelConnectivity:
        moving = (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING)
        while (state := self.channel.get_state(try_to_connect=True)) in moving:
            await self.channel.wait_for_state_change(state)
        return state
