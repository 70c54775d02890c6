"""A worker reads what a peer has cached of a prompt, and computes the rest itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from armature.engines.host.conversion import pack_tokens
from armature.v1.worker_pb2 import PrefillRequest, PrefillStart, PrefillTarget
from armature.v1.worker_pb2_grpc import PrefillStub
from tests.support.decode_client import DecodeClient, decode_client
from tests.support.eventually import eventually
from tests.support.workers import Child, Setup, Worker, child_worker, target_of, worker

PROMPT = list(range(100, 1105))  # 62 whole blocks and 13 tokens


@asynccontextmanager
async def peers(transport: str) -> AsyncIterator[tuple[Child, DecodeClient, Worker, DecodeClient]]:
    """A peer in a process of its own, and the worker that reads from it; with a client each."""
    async with (
        child_worker(Setup(role="aggregated", transport=transport)) as far,
        worker(Setup(role="aggregated", transport=transport)) as near,
        decode_client(far.address) as far_client,
        decode_client(near.address) as client,
    ):
        yield far, far_client, near, client


def cached_on(far: Child) -> PrefillTarget:
    target = target_of(far.address, far.fingerprint)
    target.cached_only = True
    return target


@pytest.mark.parametrize("transport", ["nixl", "grpc"])
async def test_what_a_peer_has_cached_is_read_and_counts_as_cached(transport: str) -> None:
    async with peers(transport) as (far, far_client, near, client):
        computed = await (await far_client.ask(PROMPT)).wait()
        answer = await (await client.ask(PROMPT, prefill=cached_on(far))).wait()
        assert answer.tokens == computed.tokens
        info = answer.info
        assert (info.pull_worker, info.prefill_worker, info.transport) == ("prefill", "", transport)
        assert (info.transferred_tokens, info.prefill_cached_tokens) == (62 * 16, 62 * 16)

        part = [*PROMPT[:500], *range(5, 300)]
        answer = await (await client.ask(part, prefill=cached_on(far), cache_namespace="other")).wait()
        assert (answer.info.pull_worker, answer.info.transferred_tokens) == ("", 0), "of another namespace"
        await (await far_client.ask(PROMPT[:500], cache_namespace="other")).wait()
        answer = await (await client.ask(part[:-1], prefill=cached_on(far), cache_namespace="other")).wait()
        assert answer.tokens == (await (await far_client.ask(part[:-1], cache_namespace="third")).wait()).tokens

        load = await far.load()
        assert (load["staged_blocks"], load["quarantined_blocks"]) == (0, 0)
        await eventually(lambda: near.load.free_blocks == near.load.total_blocks)


async def test_what_the_peer_has_not_is_computed() -> None:
    async with peers("grpc") as (far, far_client, _, client):
        await (await far_client.ask(PROMPT[:500])).wait()
        answer = await (await client.ask(PROMPT, prefill=cached_on(far))).wait()
        assert answer.info.transferred_tokens == 31 * 16
        assert answer.info.prefill_cached_tokens == 31 * 16
        assert answer.tokens == (await (await client.ask(PROMPT, cache_namespace="alone")).wait()).tokens
        assert (await far.load())["computed_prefill_tokens"] == 500


async def test_a_worker_that_computes_no_prompts_for_others_says_so() -> None:
    async with worker(Setup(role="aggregated", transport="grpc")) as near:
        fingerprint = near.host.worker_info.kv_fingerprint
        start = PrefillStart(model="m", token_ids=pack_tokens(PROMPT), transport="grpc", kv_fingerprint=fingerprint)
        async with grpc.aio.insecure_channel(near.address) as channel:
            call = PrefillStub(channel).Prefill(iter([PrefillRequest(start=start)]), timeout=5)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "cached_only" in str(refused.value.details())
