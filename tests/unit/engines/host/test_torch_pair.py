"""A real model answers the same whether its prompt was computed here or on another worker."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from armature.v1.common_pb2 import FINISH_REASON_STOP, Grammar, SamplingParams, TextChoice
from armature.v1.worker_pb2 import WorkerError
from tests.support.decode_client import DecodeClient, decode_client
from tests.support.eventually import eventually
from tests.support.models import make_model
from tests.support.workers import Setup, Worker, worker

PROMPTS = [[(7 * i + j * j) % 500 for i in range(length)] for j, length in enumerate((5, 16, 17, 100, 333))]


@pytest.fixture(scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Worker, Worker, DecodeClient]]:
    path = make_model(tmp_path_factory.mktemp("model"))
    setup = Setup(torch_model=str(path), num_blocks=128, max_num_batched_tokens=64)
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(worker(replace(setup, role="prefill")))
        near = await stack.enter_async_context(worker(setup))
        yield far, near, await stack.enter_async_context(decode_client(near.address))


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.0), SamplingParams(temperature=0.9, seed=11)], ids=["greedy", "seeded"]
)
async def test_answers_are_equal(pair: tuple[Worker, Worker, DecodeClient], sampling: SamplingParams) -> None:
    far, near, client = pair
    name = f"{sampling.temperature}"
    for prompt in PROMPTS:
        here = await (await client.ask(prompt, 24, sampling=sampling, cache_namespace=f"{name} here")).wait()
        there = await (
            await client.ask(prompt, 24, sampling=sampling, cache_namespace=f"{name} there", prefill=far.target())
        ).wait()
        assert there.tokens == here.tokens
        assert there.info.transferred_tokens == (len(prompt) - 1) // 16 * 16
    assert len({tuple(answer.tokens) for answer in client.answers.values()}) >= len(PROMPTS), "they do differ"
    await eventually(lambda: far.load.free_blocks == far.load.total_blocks)
    await eventually(lambda: near.load.free_blocks == near.load.total_blocks)


async def test_an_answer_with_a_grammar_is_the_same_wherever_its_prompt_is_computed(
    pair: tuple[Worker, Worker, DecodeClient],
) -> None:
    far, _, client = pair
    grammar, sampling = Grammar(choice=TextChoice(texts=["grüße", "salutations"])), SamplingParams(seed=3)
    bound = {"sampling": sampling, "grammar": grammar}
    here = await (await client.ask(PROMPTS[3], 24, cache_namespace="bound here", **bound)).wait()
    there = await (
        await client.ask(PROMPTS[3], 24, cache_namespace="bound there", prefill=far.target(), **bound)
    ).wait()
    assert here.tokens == there.tokens
    assert here.finish_reason == there.finish_reason == FINISH_REASON_STOP


@pytest.mark.parametrize(
    ("grammar", "sampling", "complaint"),
    [
        (Grammar(regex="("), SamplingParams(), "unclosed group"),
        (Grammar(), SamplingParams(), "empty"),
        (Grammar(json_object=True), SamplingParams(min_tokens=2), "min_tokens"),
    ],
)
async def test_a_grammar_that_cannot_be_followed_is_the_callers_mistake(
    pair: tuple[Worker, Worker, DecodeClient], grammar: Grammar, sampling: SamplingParams, complaint: str
) -> None:
    _, near, client = pair
    answer = await (await client.ask(PROMPTS[0], 24, grammar=grammar, sampling=sampling)).wait()
    assert answer.error.code == WorkerError.CODE_INVALID
    assert complaint in answer.error.message
    await eventually(lambda: len(near.host.generations) == 0)


async def test_a_request_that_is_cancelled_while_its_grammar_is_compiled_is_forgotten(
    pair: tuple[Worker, Worker, DecodeClient],
) -> None:
    _, near, client = pair
    answers = [await client.ask(PROMPTS[0], 24, grammar=Grammar(regex=f"a{{{n}}}b")) for n in range(20)]
    for answer in answers:
        await client.cancel(answer)
    for answer in answers:
        await answer.wait()
    await eventually(lambda: len(near.host.generations) == 0 and not near.load.running_seqs)
