"""`Decode.Embed` of a worker host with a simulated engine."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from armature.engines.host import embedding
from armature.engines.host.conversion import pack_tokens
from armature.v1.worker_pb2 import PromptBatch
from armature.v1.worker_pb2_grpc import DecodeStub
from tests.support.eventually import eventually
from tests.support.workers import Setup, Worker, worker

SETUP = Setup(role="aggregated", transport="grpc", max_num_seqs=8, step_s=0.002)


@pytest.fixture(scope="module")
async def serving() -> AsyncIterator[Worker]:
    async with worker(SETUP) as running:
        yield running


@pytest.fixture
async def embed(serving: Worker) -> Any:
    stub: Any = DecodeStub(serving.channels.get(serving.address))

    def call(*prompts: bytes, model: str = "m", timeout_s: float = 20.0) -> Any:
        return stub.Embed(PromptBatch(request_id="r", model=model, prompts=prompts), timeout=timeout_s)

    return call


def is_idle(serving: Worker) -> bool:
    load = serving.load
    idle = load.running_seqs == load.waiting_seqs == 0 and load.free_blocks == load.total_blocks
    return idle and not serving.host.embeddings.num_prompts


async def test_each_prompt_has_its_own_direction_of_length_one_and_its_place(serving: Worker, embed: Any) -> None:
    prompts = [pack_tokens([5, 6, 7, number]) for number in range(40)]
    whole = await embed(*prompts, prompts[0])
    vectors = np.array([np.frombuffer(one, dtype="<f4") for one in whole.embeddings])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert len(np.unique(vectors[:, 0])) == 40
    assert whole.embeddings[0] == whole.embeddings[40] == (await embed(prompts[0])).embeddings[0]
    await eventually(lambda: is_idle(serving))
    assert serving.load.cached_blocks == 0


async def test_only_a_few_prompts_are_in_the_engine_at_a_time(serving: Worker, embed: Any) -> None:
    prompts = [pack_tokens([*range(3, 603)])] * 12
    call = embed(*prompts)
    most = 0
    while not call.done():
        load = serving.load
        most = max(most, load.running_seqs + load.waiting_seqs)
        await asyncio.sleep(0.001)
    assert len((await call).embeddings) == 12
    assert 1 <= most <= SETUP.max_num_seqs // embedding.SHARE_OF_SEATS


@pytest.mark.parametrize(
    ("prompts", "model", "code"),
    [
        ([pack_tokens([1])], "other", grpc.StatusCode.NOT_FOUND),
        ([], "m", grpc.StatusCode.INVALID_ARGUMENT),
        ([b""], "m", grpc.StatusCode.INVALID_ARGUMENT),
        ([b"abc"], "m", grpc.StatusCode.INVALID_ARGUMENT),
        ([pack_tokens([1]), pack_tokens([10**6])], "m", grpc.StatusCode.INVALID_ARGUMENT),
        ([pack_tokens([1] * 40000)], "m", grpc.StatusCode.INVALID_ARGUMENT),
        ([pack_tokens([1])] * 257, "m", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_wrong_batches_are_refused_whole(
    embed: Any, serving: Worker, prompts: list[bytes], model: str, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await embed(*prompts, model=model)
    assert refused.value.code() == code
    assert is_idle(serving)


async def test_a_call_that_is_given_up_leaves_the_engine_at_once(serving: Worker, embed: Any) -> None:
    call = embed(*[pack_tokens([*range(3, 5000)])] * 50)
    await eventually(lambda: serving.load.running_seqs > 0)
    call.cancel()
    await eventually(lambda: is_idle(serving))
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await embed(*[pack_tokens([*range(3, 5000)])] * 50, timeout_s=0.2)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: is_idle(serving))


async def test_more_prompts_than_may_wait_are_sent_elsewhere(
    serving: Worker, embed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "MAX_WAITING_PROMPTS", 30)
    first = embed(*[pack_tokens([*range(3, 3000)])] * 25)
    await eventually(lambda: serving.host.embeddings.num_prompts == 25)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await embed(*[pack_tokens([3])] * 6)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
    await eventually(lambda: is_idle(serving))
