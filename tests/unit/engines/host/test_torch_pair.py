"""A real model answers the same whether its prompt was computed here or on another worker."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from armature.v1.common_pb2 import SamplingParams
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
