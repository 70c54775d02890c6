"""A worker reads what another node's kv-offload keeps of a prompt, and computes what does not come."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from prometheus_client import REGISTRY

from armature.engines.host.tiers.onboarder import layout_of
from armature.runtime.membership import MemberChange
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import PrefillTarget
from tests.support.decode_client import DecodeClient, decode_client
from tests.support.eventually import eventually
from tests.support.fake_offload import FakeOffload, fake_offload
from tests.support.workers import Setup, Worker, worker

PROMPT = list(range(100, 350))
"""15 whole blocks and 10 tokens."""
FAR = Setup(role="aggregated", transport="grpc", num_blocks=64, max_num_batched_tokens=256)


def failures(reason: str) -> float:
    return REGISTRY.get_sample_value("armature_worker_fetch_failures_total", {"reason": reason}) or 0.0


def target_of(below: FakeOffload) -> PrefillTarget:
    return PrefillTarget(
        worker_id="n1", address=below.address, handoff=common.HANDOFF_PULL,
        kv_fingerprint=below.layout.kv_fingerprint, cached_only=True, is_offload=True,
    )  # fmt: skip


@asynccontextmanager
async def places() -> AsyncGenerator[tuple[list[int], FakeOffload, Worker, DecodeClient]]:
    """What a worker of the one node has answered and its kv-offload now keeps, and a worker of another node."""
    async with (
        worker(Setup(role="aggregated", transport="grpc", num_blocks=31, offload=True)) as near,
        worker(FAR) as far,
        fake_offload(layout_of(near.engine)) as below,
        decode_client(near.address) as near_client,
        decode_client(far.address) as client,
    ):
        tiers = near.host.exchange.tiers
        assert tiers is not None
        tiers.on_change(below.joined())
        try:
            await eventually(lambda: tiers.member is not None)
            answer = await (await near_client.ask(PROMPT)).wait()
            await eventually(lambda: len(below.held) >= 15)
        finally:
            tiers.on_change(MemberChange("left", below.member))
        yield answer.tokens, below, far, client
        await eventually(lambda: far.load.free_blocks == far.load.total_blocks)
        assert not len(far.host.exchange.onboarder) and not len(far.host.generations)


async def test_what_another_nodes_kv_offload_keeps_is_read_and_counts_as_cached() -> None:
    async with places() as (tokens, below, far, client):
        longer = [*PROMPT, *range(1000, 1100)]
        answer = await (await client.ask(longer, prefill=target_of(below), tenant="payer")).wait()
        info = answer.info
        assert (info.pull_worker, info.prefill_worker, info.cached_tokens) == ("n1", "", 0)
        assert (info.transferred_tokens, info.prefill_cached_tokens) == (240, 240)
        assert [(one.tier, one.tokens) for one in info.onboarded] == [(common.TIER_G2, 240)]
        assert (info.onboard_asked_tokens, info.onboard_found_tokens) == (len(longer) // 16 * 16, 240)
        assert below.tenants[-1] == "payer"
        alone = await (await client.ask(longer, cache_namespace="alone")).wait()
        assert answer.tokens == alone.tokens
        again = await (await client.ask(PROMPT)).wait()
        assert (again.tokens, again.info.cached_tokens) == (tokens, 240)
        assert far.host.exchange.fetcher.bytes_per_s > 0
        await below.is_ended.wait()


def wrong_bytes(below: FakeOffload) -> None:
    for block_id in below.held.values():
        below.memory.set_digest(block_id, b"something else!!")


@pytest.mark.parametrize(
    ("reason", "mishap", "blocks"),
    [
        ("stale", wrong_bytes, 0),
        ("gone", lambda below: below.held.clear(), 0),
        ("timeout", lambda below: setattr(below, "stalls_after", 8), 8),
        ("timeout", lambda below: setattr(below, "is_mute", True), 0),
    ],
    ids=["wrong bytes", "nothing there", "stalls", "mute"],
)  # fmt: skip
async def test_what_does_not_come_right_and_in_time_is_computed(
    reason: str, mishap: Callable[[FakeOffload], None], blocks: int
) -> None:
    async with places() as (tokens, below, _, client):
        mishap(below)
        before, avoided = failures(reason), failures("avoided")
        answer = await (await client.ask(PROMPT, prefill=target_of(below))).wait()
        assert (answer.tokens, answer.info.transferred_tokens) == (tokens, 16 * blocks)
        assert failures(reason) == before + 1
        told = answer.info.onboard_asked_tokens, answer.info.onboard_found_tokens
        assert told == ((0, 0) if below.is_mute else (240, 0 if reason == "gone" else 240))
        if below.is_mute:
            # Nobody else waits for it now.
            await (await client.ask(PROMPT, prefill=target_of(below), cache_namespace="other")).wait()
            assert failures("avoided") == avoided + 1
        await below.is_ended.wait()


async def test_blocks_of_another_layout_are_not_asked_for() -> None:
    async with places() as (tokens, below, _, client):
        target = target_of(below)
        target.kv_fingerprint = b"foreign"
        before, asked = failures("fingerprint"), below.onboards
        answer = await (await client.ask(PROMPT, prefill=target)).wait()
        assert (answer.tokens, answer.info.pull_worker) == (tokens, "")
        assert (failures("fingerprint"), below.onboards) == (before + 1, asked)


async def test_a_client_that_leaves_ends_what_is_read_for_him() -> None:
    async with places() as (_, below, _, client):
        below.stalls_after = 0
        answer = await client.ask(PROMPT, prefill=target_of(below))
        await eventually(lambda: below.onboards > 0)
        await client.cancel(answer)
        await answer.wait()
        await below.is_ended.wait()
