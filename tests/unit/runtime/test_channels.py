"""Channels to the other members: one per address, back soon after their peer is."""

import asyncio
import time

import grpc
import pytest

from armature.runtime.channels import ChannelPool
from armature.runtime.server import RpcServer
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from tests.unit.runtime.test_server import Index, match, serving


async def test_an_address_has_one_channel_until_it_is_discarded() -> None:
    pool = ChannelPool()
    async with serving(Index()) as server:
        first = pool.get(server.address)
        assert pool.get(server.address) is first
        await match(first)
        await pool.discard(server.address)
        await pool.discard("unknown:1")
        with pytest.raises(grpc.aio.UsageError):
            await match(first)
        second = pool.get(server.address)
        assert second is not first
        await match(second)
        await pool.close()


async def test_closing_the_pool_cancels_what_is_still_running() -> None:
    async def hang(context: object) -> None:
        await asyncio.Event().wait()

    index, pool = Index(hang), ChannelPool()
    async with serving(index) as server, asyncio.timeout(5):
        stream = kv_index_pb2_grpc.KvIndexStub(pool.get(server.address)).Follow(kv_index_pb2.FollowRequest())
        await stream.read()
        await pool.close()
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await stream.read()
        await index.ended.wait()


async def test_a_peer_that_returns_is_reached_within_two_seconds() -> None:
    pool = ChannelPool()
    async with serving(Index()) as server:
        port, channel = server.port, pool.get(server.address)
        await match(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await match(channel, timeout_s=2)
    returned = RpcServer("127.0.0.1", port)
    returned.add(kv_index_pb2_grpc.add_KvIndexServicer_to_server, Index(), "armature.v1.KvIndex")
    await returned.start()
    began_s = time.monotonic()
    stub = kv_index_pb2_grpc.KvIndexStub(channel)
    await stub.Match(kv_index_pb2.MatchRequest(), timeout=10, wait_for_ready=True)
    assert time.monotonic() - began_s < 2.0
    await pool.close()
    await returned.stop(0)
