"""The adapter under the contract of engines, over a fake vLLM."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from llguidance import LLMatcher

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockHasher
from armature.engines.engine import BlockEngine
from armature.engines.vllm.engine import VllmEngine
from armature.engines.vllm.kv_events import salt_of
from armature.scheduling.request import FinishReason, Request, Sampling, Work
from armature.v1.common_pb2 import Grammar
from tests.support.engine_listener import Listener
from tests.support.eventually import eventually
from tests.support.fake_vllm import FakeFeed, FakeVllm, launched

ROOT = BlockHasher(b"secret", 4).root("m", "alice")


def request(name: str, made: int = 0, max_tokens: int = 3, **more: Any) -> Request:
    return Request(name, array("I", range(10, 16 + made)), 6, max_tokens, ROOT, **more)


@asynccontextmanager
async def running(max_waiting: int = 8, feed: Any = None) -> AsyncIterator[tuple[VllmEngine, FakeVllm, Listener]]:
    vllm, listener = FakeVllm(), Listener()
    engine = VllmEngine(launched(vllm, feed), max_waiting=max_waiting)
    await engine.start(listener.hear)
    try:
        yield engine, vllm, listener
    finally:
        await engine.stop()
        assert vllm.is_shut_down


async def test_a_prompt_goes_to_vllm_with_its_tenants_salt_and_its_priority() -> None:
    async with running() as (engine, vllm, _):
        engine.submit(request("a", priority=3, sampling=Sampling(temperature=0.0)))
        await eventually(lambda: "a" in vllm.asked)
        prompt, fields, priority = vllm.asked["a"]
        assert prompt == {"type": "token", "prompt_token_ids": list(range(10, 16)), "cache_salt": salt_of(ROOT)}
        assert (fields["max_tokens"], fields["temperature"], fields["grammar"], priority) == (3, 0.0, None, -3)
        assert not isinstance(engine, BlockEngine)


async def test_the_tokens_of_a_step_are_told_in_one_step() -> None:
    async with running() as (engine, vllm, listener):
        asked = [request(name) for name in "abc"]
        for one in asked:
            engine.submit(one)
        await eventually(lambda: len(vllm.asked) == 3)
        for _ in range(3):
            told = len(listener.outputs)
            vllm.step(prefill_tokens=6)
            await eventually(lambda told=told: len(listener.outputs) > told)
            assert len(listener.outputs) == told + 1 and len(listener.outputs[-1].tokens) == 3
        assert {end.finish_reason for end in await listener.end_of(*asked)} == {FinishReason.LENGTH}
        assert list(listener.tokens.values()) == [[100, 101, 102]] * 3
        assert listener.outputs[-1].load.computed_prefill_tokens == 18


async def test_a_moved_answer_goes_on_where_it_was() -> None:
    async with running() as (engine, vllm, listener):
        listener.tokens["a"] = [0, 0]
        engine.submit(request("a", made=2))
        await eventually(lambda: "a" in vllm.asked)
        assert len(vllm.asked["a"][0]["prompt_token_ids"]) == 8
        vllm.step()
        await listener.until(lambda: "a" in listener.ends)
        assert listener.tokens["a"] == [0, 0, 100]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_an_abort_reaches_vllm_and_answers_once(has_begun: bool) -> None:
    async with running() as (engine, vllm, listener):
        engine.submit(asked := request("a"))
        if has_begun:
            await eventually(lambda: "a" in vllm.asked)
            vllm.step()
            await listener.until(lambda: bool(listener.tokens["a"]))
        engine.abort("a")
        engine.abort("a")
        engine.abort("nobody")
        (end,) = await listener.end_of(asked)
        assert end.finish_reason is FinishReason.CANCELLED
        assert vllm.aborted == ["a"]
        load = listener.outputs[-1].load
        assert (load.running_seqs, load.waiting_seqs, load.waiting_prefill_tokens) == (0, 0, 0)


async def test_beyond_its_queue_it_refuses() -> None:
    async with running(max_waiting=1) as (engine, _, listener):
        engine.submit(request("a"))
        engine.submit(late := request("b"))
        (end,) = await listener.end_of(late)
        assert end.error.startswith("queue full") and "a" not in listener.ends


@pytest.mark.parametrize(
    ("wrong", "raised", "error"),
    [
        (request("a", work=Work.PREFILL), None, "invalid: "),
        (request("a"), ValueError("logit_bias has 99999"), "invalid: logit_bias"),
        (request("a", grammar="start: <x>"), ValueError("no such token"), "grammar: no such token"),
        (request("a"), KeyError("x"), "vLLM has failed: KeyError"),
    ],
)
async def test_what_can_t_be_served_ends_alone_with_the_reason(
    wrong: Request, raised: Exception | None, error: str
) -> None:
    async with running() as (engine, vllm, listener):
        vllm.error = lambda name: raised if name == "a" else None
        engine.submit(wrong)
        engine.submit(right := request("b", max_tokens=1))
        (end,) = await listener.end_of(wrong)
        assert end.finish_reason is FinishReason.ERROR and end.error.startswith(error)
        await eventually(lambda: "b" in vllm.asked)
        vllm.step()
        assert (await listener.end_of(right))[0].finish_reason is FinishReason.LENGTH
        assert listener.outputs[-1].load.total_blocks == 100


async def test_when_vllm_dies_every_request_ends_and_the_pool_has_no_blocks() -> None:
    async with running() as (engine, vllm, listener):
        asked = [request("a"), request("b")]
        for one in asked:
            engine.submit(one)
        await eventually(lambda: len(vllm.asked) == 2)
        vllm.die()
        assert {end.finish_reason for end in await listener.end_of(*asked)} == {FinishReason.ERROR}
        await listener.until(lambda: not listener.outputs[-1].load.total_blocks)
        assert listener.outputs[-1].load.failed_steps_in_a_row


async def test_an_idle_vllms_death_is_noticed() -> None:
    async with running() as (_, vllm, listener):
        vllm.errored = True
        await listener.until(lambda: bool(listener.outputs) and not listener.outputs[-1].load.total_blocks)


async def test_kv_events_are_told_with_the_blocks_that_are_cached() -> None:
    feed = FakeFeed()
    async with running(feed=feed) as (_, _, listener):
        event = KvEvent(1, KvEventKind.CLEARED)
        feed.heard.put_nowait([event])
        await listener.until(lambda: any(output.kv_events == (event,) for output in listener.outputs))
        assert listener.outputs[-1].load.cached_blocks == 3


async def test_after_its_stop_nothing_is_told() -> None:
    async with running() as (engine, vllm, listener):
        engine.submit(request("a"))
        await eventually(lambda: "a" in vllm.asked)
    told = len(listener.outputs)
    await asyncio.sleep(0)
    assert len(listener.outputs) == told and not listener.ends


async def test_a_grammar_is_checked_before_it_is_submitted() -> None:
    async with running() as (engine, _, _):
        assert await engine.compile(Grammar(regex="a/b+c")) == "start: /a\\/b+c/"
        schema = await engine.compile(Grammar(json_schema='{"enum": ["a ::= b"]}'))
        assert isinstance(schema, str) and schema.startswith("start: %json {") and "::=" not in schema
        assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(schema)) == ""
        with pytest.raises(ValueError):
            await engine.compile(Grammar(regex="(ab"))
