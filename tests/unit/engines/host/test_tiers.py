"""A worker whose device is too small, and a kv-offload: what is offered, read back, given up, and counted."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from prometheus_client import REGISTRY

from armature.index.tiers import Tier
from armature.runtime.membership import MemberChange
from armature.v1 import common_pb2 as common
from tests.support.decode_client import Answer, DecodeClient, decode_client
from tests.support.eventually import eventually
from tests.support.fake_offload import FakeOffload, fake_offload
from tests.support.workers import Setup, Worker, worker

SMALL = Setup(role="aggregated", transport="grpc", num_blocks=31, offload=True, max_num_batched_tokens=256)
"""Room for two prompts. Few steps are made, so what they cost is not known, and whatever is below is read."""
PROMPTS = [list(range(start, start + 250)) for start in range(100, 400, 100)]
"""15 whole blocks each."""


@dataclass
class Place:
    worker: Worker
    below: FakeOffload
    client: DecodeClient

    async def ask(self, prompt: list[int]) -> Answer:
        answer = await (await self.client.ask(prompt, tenant="payer")).wait()
        await eventually(lambda: self.worker.load.free_blocks == self.worker.load.total_blocks)
        return answer

    async def fill(self) -> list[list[int]]:
        """Ask all prompts once; once this returns, all that is offered is below."""
        answers: list[list[int]] = []
        for number, prompt in enumerate(PROMPTS, 1):
            answers.append((await self.ask(prompt)).tokens)
            await eventually(lambda: len(self.below.held) >= 15 * number)  # noqa: B023
        return answers

    def lose(self) -> None:
        """The kv-offload goes away."""
        assert self.worker.host.exchange.tiers is not None
        self.worker.host.exchange.tiers.on_change(MemberChange("left", self.below.member))


@asynccontextmanager
async def place(setup: Setup = SMALL) -> AsyncIterator[Place]:
    async with worker(setup) as near:
        tiers = near.host.exchange.tiers
        assert tiers is not None
        async with fake_offload(tiers.layout) as below, decode_client(near.address) as client:
            tiers.on_change(below.joined())
            await eventually(lambda: tiers.member is not None)
            found = Place(near, below, client)
            yield found
            found.lose()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"armature_worker_{name}_total", labels) or 0.0


async def test_what_the_device_has_evicted_is_read_back() -> None:
    before = metric("onboarded_blocks", tier="g2")
    async with place() as here:
        first = await here.fill()
        answers = [await here.ask(prompt) for prompt in PROMPTS]
        assert [answer.tokens for answer in answers] == first
        assert [answer.info.cached_tokens for answer in answers] == [240] * 3
        onboarded = [(one.tier, one.tokens) for answer in answers for one in answer.info.onboarded]
        assert onboarded == [(common.TIER_G2, 240)] * 3
        assert {(one.info.onboard_asked_tokens, one.info.onboard_found_tokens) for one in answers} == {(240, 240)}
        assert metric("onboarded_blocks", tier="g2") - before == 45
        assert here.worker.host.exchange.tiers is not None and Tier.G2 in here.worker.host.exchange.tiers.speeds
        assert [(len(prompt.digests), prompt.tenant) for prompt in here.below.seen[:3]] == [(15 * 16, "payer")] * 3
        assert set(here.below.tenants) == {"payer"}


async def test_blocks_are_offered_once_while_they_are_below() -> None:
    before = metric("offload_blocks", outcome="taken")
    async with place() as here:
        await here.fill()
        await here.fill()
        assert metric("offload_blocks", outcome="taken") - before == 45


async def test_what_arrives_with_another_digest_is_computed() -> None:
    before = metric("onboard_failures", reason="stale")
    async with place() as here:
        first = await here.fill()
        for block_id in here.below.held.values():
            here.below.memory.set_digest(block_id, b"something else!!")
        assert [(await here.ask(prompt)).tokens for prompt in PROMPTS] == first
        assert metric("onboard_failures", reason="stale") - before == 3


async def test_what_does_not_come_in_time_is_computed_and_what_has_come_is_used() -> None:
    async with place() as here:
        await here.fill()
        here.below.stalls_after = 8
        answer = await here.ask(PROMPTS[0])
        assert answer.info.cached_tokens == 8 * 16
        assert here.below.is_ended.is_set()


async def test_without_a_kv_offload_everything_is_computed() -> None:
    async with place() as here:
        first = await here.fill()
        here.lose()
        answers = [await here.ask(prompt) for prompt in PROMPTS]
        assert [answer.tokens for answer in answers] == first
        assert not any(answer.info.cached_tokens for answer in answers)
        assert not here.below.onboards


async def test_a_client_that_leaves_ends_what_is_read_for_him() -> None:
    async with place() as here:
        await here.fill()
        here.below.stalls_after = 0
        answer = await here.client.ask(PROMPTS[0])
        await eventually(lambda: here.below.onboards > 0)
        await here.client.cancel(answer)
        await answer.wait()
        await here.below.is_ended.wait()
        assert here.worker.host.exchange.onboarder is not None
        await eventually(lambda: here.worker.load.free_blocks == here.worker.load.total_blocks)
        assert not len(here.worker.host.exchange.onboarder) and not len(here.worker.host.generations)


async def test_a_kv_offload_that_does_not_answer_is_not_waited_for_again_and_again() -> None:
    before = metric("onboard_failures", reason="avoided")
    async with place() as here:
        first = await here.fill()
        here.below.is_mute = True
        assert [(await here.ask(prompt)).tokens for prompt in PROMPTS] == first
        assert here.below.onboards == 1
        assert metric("onboard_failures", reason="avoided") - before == 2


async def test_a_prefill_worker_reads_back_what_others_then_read_from_it() -> None:
    helper = replace(SMALL, role="prefill", member_id="helper")
    async with (
        worker(helper) as far,
        worker(Setup(transport="grpc", num_blocks=31)) as near,
        decode_client(near.address) as client,
    ):
        tiers = far.host.exchange.tiers
        assert tiers is not None
        async with fake_offload(tiers.layout) as below:
            tiers.on_change(below.joined())
            await eventually(lambda: tiers.member is not None)
            for _ in range(2):
                answers = []
                for prompt in PROMPTS:
                    answers.append(await (await client.ask(prompt, prefill=far.target())).wait())
                    await eventually(lambda: far.load.free_blocks == far.load.total_blocks)
                await eventually(lambda: len(below.held) == 45)
            assert [answer.info.prefill_cached_tokens for answer in answers] == [240] * 3
            onboarded = [(one.tier, one.tokens) for answer in answers for one in answer.info.onboarded]
            assert onboarded == [(common.TIER_G2, 240)] * 3
            tiers.on_change(MemberChange("left", below.member))


async def test_blocks_of_another_layout_are_left_alone() -> None:
    async with worker(SMALL) as near:
        tiers = near.host.exchange.tiers
        assert tiers is not None
        other = common.KvLayout(kv_fingerprint=b"another model", block_bytes=tiers.layout.block_bytes)
        async with fake_offload(other) as below:
            tiers.on_change(below.joined())
            assert tiers.member is None
