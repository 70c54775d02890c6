"""A worker whose engine keeps its blocks to itself serves tokens as any other, and nothing about blocks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from armature.engines.host.host import Identity, WorkerHost
from armature.engines.vllm.engine import VllmEngine
from armature.runtime.channels import ChannelPool
from armature.runtime.server import RpcServer
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import SetRoleRequest
from armature.v1.worker_pb2_grpc import PrefillStub, WorkerStub
from tests.support.decode_client import decode_client
from tests.support.eventually import eventually
from tests.support.fake_vllm import FakeVllm, launched


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[WorkerHost, FakeVllm, RpcServer]]:
    vllm, channels, server = FakeVllm(), ChannelPool(), RpcServer("127.0.0.1")
    engine = VllmEngine(launched(vllm))
    async with asyncio.TaskGroup() as tasks:
        host = WorkerHost(
            engine, None, identity=Identity("w", 7, common.ROLE_AGGREGATED), cluster_secret=b"s", channels=channels,
            spawn=tasks.create_task,
        )  # fmt: skip
        host.register(server, lambda _: asyncio.sleep(0))
        await server.start()
        await engine.start(host.on_step)
        try:
            yield host, vllm, server
        finally:
            await server.stop(0)
            await channels.close()
            await engine.stop()


async def test_tokens_reach_the_client_and_its_cancel_reaches_vllm() -> None:
    async with serving() as (host, vllm, server), decode_client(server.address) as client:
        answer = await client.ask(list(range(10, 20)), 3)
        await eventually(lambda: len(vllm.asked) == 1)
        for _ in range(3):
            vllm.step()
        await answer.wait()
        assert (answer.tokens, answer.finish_reason) == ([100, 101, 102], common.FINISH_REASON_LENGTH)
        other = await client.ask(list(range(10, 20)), 3)
        await eventually(lambda: len(vllm.asked) == 2)
        await client.cancel(other)
        await other.wait()
        await eventually(lambda: len(vllm.aborted) == 1 and not len(host.generations))


async def test_it_tells_that_it_hands_over_no_blocks_and_computes_for_nobody() -> None:
    async with serving() as (host, _, server), grpc.aio.insecure_channel(server.address) as channel:
        info = host.worker_info
        assert (info.engine, info.handoff, list(info.transports)) == ("vllm", common.HANDOFF_UNSPECIFIED, [])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await WorkerStub(channel).SetRole(SetRoleRequest(role=common.ROLE_PREFILL), timeout=5)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await PrefillStub(channel).Prefill(timeout=5).read()
        assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_dead_vllm_is_the_workers_failure() -> None:
    async with serving() as (host, vllm, _):
        vllm.die()
        async with asyncio.timeout(20):
            await host.failed.wait()
