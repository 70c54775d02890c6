"""Several answers to one prompt: made with different seeds, told apart by their index, cancelled together."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from armature.v1 import common_pb2 as common
from armature.v1.inference_pb2 import GenerateRequest
from armature.v1.worker_pb2 import DecodeRequest, TokenDelta
from tests.services.gateway.fakes import FakeWorker, breaking_after, faithful, output_of
from tests.services.gateway.harness import MODEL, TEXT, answer, encode, make_worker, running_gateway
from tests.services.gateway.test_inference import inference
from tests.support.eventually import eventually

MESSAGES: Any = [{"role": "user", "content": "Where is it?"}]
LONG: Any = [{"role": "user", "content": "Where is it? " * 40}]


async def seeded(worker: FakeWorker, request: DecodeRequest) -> AsyncIterator[TokenDelta]:
    """Answers the seed, in tokens that depend on nothing else."""
    tokens = encode(f"seed {request.sampling.seed}")
    for index in range(output_of(request), len(tokens)):
        await worker.pace()
        is_last = index == len(tokens) - 1
        logprob = -1.0 / (1 + request.sampling.seed % 97)
        yield TokenDelta(
            stream_id=request.stream_id,
            output_index=index,
            token_ids=[tokens[index]],
            logprobs=[common.Logprobs(tokens=[common.TokenLogprob(token_id=tokens[index], logprob=logprob)])]
            if request.sampling.logprobs
            else [],
            finish_reason=common.FINISH_REASON_STOP if is_last else common.FINISH_REASON_UNSPECIFIED,
        )


async def test_answers_are_the_same_streamed_or_not_and_the_first_is_the_one_of_a_single_choice() -> None:
    async with running_gateway(make_worker(script=seeded)) as gateway, gateway.openai() as client:
        ask = {"model": MODEL, "messages": MESSAGES, "seed": 5}
        alone = await client.chat.completions.create(**ask)
        whole = await client.chat.completions.create(**ask, n=3)
        texts, reasons, roles, usage = defaultdict(str), {}, set(), None
        stream = await client.chat.completions.create(**ask, n=3, stream=True, stream_options={"include_usage": True})
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                assert choice.index not in reasons
                texts[choice.index] += choice.delta.content or ""
                roles |= {choice.index} if choice.delta.role else set()
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message.content for choice in whole.choices] == [texts[0], texts[1], texts[2]]
    assert alone.choices[0].message.content == texts[0] == "seed 5"
    assert len(set(texts.values())) == 3
    assert roles == {0, 1, 2} and reasons == dict.fromkeys(range(3), "stop")
    assert whole.usage.completion_tokens == usage.completion_tokens == sum(len(encode(text)) for text in texts.values())
    assert whole.usage.prompt_tokens == usage.prompt_tokens == alone.usage.prompt_tokens


async def test_a_long_prompt_is_sent_again_only_when_its_first_answer_has_begun() -> None:
    worker = make_worker(script=seeded)
    worker.step = asyncio.Event()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        short = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3))
        await eventually(lambda: len(worker.requests) == 3)
        worker.requests.clear()
        long = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=LONG, n=3))
        await eventually(lambda: len(worker.requests) == 1)
        worker.step.set()
        await asyncio.gather(short, long)
        assert len(worker.requests) == 3


async def test_when_the_client_leaves_all_answers_are_cancelled() -> None:
    worker = make_worker(script=breaking_after(4, "silence"))
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=4, stream=True)
        async for _ in stream:
            break
        await eventually(lambda: len(worker.requests) == 4)
        await stream.close()
        await eventually(lambda: len(worker.cancelled) == 4)
        await eventually(lambda: gateway.core.inflight == 0)


async def test_an_answer_that_fails_ends_the_others_and_is_told_once() -> None:
    async def refusing_one(worker: FakeWorker, request: DecodeRequest) -> AsyncIterator[Any]:
        script = (
            faithful
            if not request.request_id.endswith(".1")
            else breaking_after(
                2, {"finish_reason": common.FINISH_REASON_ERROR, "error": {"code": 1, "message": "as scripted"}}
            )
        )
        async for delta in script(worker, request):
            yield delta

    worker = make_worker(script=refusing_one)
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        with pytest.raises(openai.BadRequestError, match="as scripted"):
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3)
        await eventually(lambda: gateway.core.inflight == 0)


async def test_each_answer_is_moved_by_itself() -> None:
    first, second = make_worker("a", script=breaking_after(3)), make_worker("b")
    async with running_gateway(first, second) as gateway, gateway.openai() as client:
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3)
    assert [choice.message.content for choice in whole.choices] == [TEXT] * 3


async def test_the_best_of_several_are_those_with_the_likeliest_tokens() -> None:
    worker = make_worker(script=seeded)
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        done = await client.completions.create(
            model=MODEL, prompt="x", n=2, seed=3, max_tokens=50, extra_body={"best_of": 5}
        )
    seeds = sorted((request.sampling.seed for request in worker.requests), key=lambda seed: seed % 97, reverse=True)
    assert [choice.text for choice in done.choices] == [f"seed {seed}" for seed in seeds[:2]]
    assert [choice.index for choice in done.choices] == [0, 1]
    assert done.choices[0].logprobs is None
    assert done.usage.completion_tokens == sum(len(encode(f"seed {seed}")) for seed in seeds)


@pytest.mark.parametrize("prompt", ["It is", encode("It is")], ids=["text", "tokens"])
async def test_a_completion_repeats_its_prompt_if_asked_to(prompt: Any) -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        ask = {"model": MODEL, "prompt": prompt, "max_tokens": 100, "echo": True, "n": 2}
        whole = await client.completions.create(**ask)
        texts: dict[int, str] = defaultdict(str)
        async for chunk in await client.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == [texts[0], texts[1]] == ["It is" + TEXT] * 2


async def test_log_probabilities_belong_to_their_answers() -> None:
    async with running_gateway(make_worker(script=seeded)) as gateway, gateway.openai() as client:
        ask: Any = {"model": MODEL, "messages": MESSAGES, "n": 2, "logprobs": True, "seed": 1}
        whole = await client.chat.completions.create(**ask)
        tokens: dict[int, list[str]] = defaultdict(list)
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            for choice in chunk.choices:
                tokens[choice.index] += [one.token for one in choice.logprobs.content] if choice.logprobs else []
    for choice in whole.choices:
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
        assert [one.token for one in choice.logprobs.content] == tokens[choice.index]


async def test_grpc_clients_get_the_answers_mixed_and_the_usage_last() -> None:
    async with inference(make_worker(batch=3)) as stub:
        responses = [r async for r in stub.Generate(GenerateRequest(model=MODEL, prompt="x", n=3))]
    for index in range(3):
        own = [response for response in responses if response.choice_index == index]
        assert "".join(response.text for response in own) == TEXT
        assert [bool(response.finish_reason) for response in own] == [False] * (len(own) - 1) + [True]
    assert [response.HasField("usage") for response in responses] == [False] * (len(responses) - 1) + [True]
    assert responses[-1].usage.completion_tokens == 3 * len(answer())
