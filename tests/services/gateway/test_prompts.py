"""Several prompts in one completion, and how likely the tokens of prompts were."""

from collections import defaultdict
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from armature.v1.common_pb2 import PromptLogprobs, SamplingParams
from armature.v1.inference_pb2 import GenerateRequest
from armature.v1.worker_pb2 import DecodeRequest
from tests.services.gateway.fakes import FakeWorker, breaking_after
from tests.services.gateway.harness import MODEL, QUICK, TEXT, Gateway, answer, encode, make_worker, running_gateway
from tests.services.gateway.test_inference import inference

PROMPT = "It is"
TOKENS = encode(PROMPT)
SCORED = [None, *(-float(position) for position in range(1, len(TOKENS)))]
"""As the fake worker has them."""


class Old(FakeWorker):
    """Knows nothing of its prompts."""

    def scores(self, request: DecodeRequest) -> PromptLogprobs:
        return PromptLogprobs()


async def completion(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    told = await gateway.client.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT, **fields})
    assert told.status_code == 200, told.text
    return told.json()


@pytest.mark.parametrize("prompts", [["It is", "x", "hello"], [encode("It is"), encode("x"), encode("hello")]], ids=str)
async def test_every_prompt_gets_its_answers_in_order_streamed_or_not(prompts: Any) -> None:
    worker = make_worker(batch=3)
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        ask: Any = {"model": MODEL, "prompt": prompts, "max_tokens": 100, "echo": True, "n": 2}
        whole = await client.completions.create(**ask)
        texts: dict[int, str] = defaultdict(str)
        usage: Any = None
        stream = await client.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    said = [prompt + TEXT for prompt in ("It is", "It is", "x", "x", "hello", "hello")]
    assert [choice.text for choice in whole.choices] == [texts[index] for index in range(6)] == said
    assert [choice.index for choice in whole.choices] == list(range(6))
    assert usage == whole.usage
    assert usage.prompt_tokens == sum(len(encode(prompt)) for prompt in ("It is", "x", "hello"))
    assert usage.completion_tokens == 6 * len(answer())
    assert len({request.request_id for request in worker.requests}) == 12
    assert len({request.sampling.seed for request in worker.requests}) == 12


async def test_one_prompt_that_can_not_be_served_is_named() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.completions.create(model=MODEL, prompt=["x", "long " * 2000])
        assert caught.value.param == "prompt[1]"
        assert gateway.core.inflight == 0
    assert not worker.requests


@pytest.mark.parametrize("max_tokens", [0, 1, 100])
async def test_a_repeated_prompt_has_its_log_probabilities_streamed_or_not(max_tokens: int) -> None:
    async with running_gateway(make_worker()) as gateway:
        ask = {"echo": True, "logprobs": 2, "max_tokens": max_tokens}
        whole = await completion(gateway, **ask)
        async with gateway.openai() as client:
            stream = await client.completions.create(model=MODEL, prompt=PROMPT, stream=True, **ask)  # pyright: ignore
            parts = [choice.logprobs async for chunk in stream for choice in chunk.choices if choice.logprobs]
    (choice,) = whole["choices"]
    told = choice["logprobs"]
    made = min(max_tokens, len(answer()))
    assert told["token_logprobs"][: len(TOKENS)] == SCORED
    assert told["top_logprobs"][0] is None and set(told["top_logprobs"][1].values()) >= {-1.0, -2.0}
    assert {len(values) for values in told.values()} == {len(TOKENS) + made}
    pairs = [*zip(told["text_offset"], told["tokens"], strict=True)]
    # Behind these come characters that span tokens.
    assert all(choice["text"].startswith(token, offset) for offset, token in pairs[: len(TOKENS) + min(made, 10)])
    assert whole["usage"]["completion_tokens"] == made
    assert choice["finish_reason"] == ("stop" if max_tokens == 100 else "length")
    for name in told:
        assert [value for part in parts for value in getattr(part, name)] == told[name], name


async def test_all_answers_to_a_prompt_show_it() -> None:
    async with running_gateway(make_worker()) as gateway:
        done = await completion(gateway, prompt=[PROMPT, "x"], echo=True, logprobs=0, max_tokens=1, n=2)
    scored = [choice["logprobs"]["token_logprobs"] for choice in done["choices"]]
    assert [len(one) for one in scored] == [len(TOKENS) + 1] * 2 + [2] * 2
    assert scored[0][: len(TOKENS)] == scored[1][: len(TOKENS)] == SCORED


async def test_nothing_is_computed_for_a_prompt_that_is_only_repeated() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway:
        done = await completion(gateway, echo=True, max_tokens=0)
    assert (done["choices"][0]["text"], done["usage"]["completion_tokens"]) == (PROMPT, 0)
    assert not worker.requests


async def test_prompt_logprobs_are_told_as_vllm_does() -> None:
    async with running_gateway(make_worker()) as gateway:
        done = await completion(gateway, prompt_logprobs=1, max_tokens=2)
        chat = (await gateway.chat(prompt_logprobs=0, max_tokens=2)).json()
    told = done["choices"][0]["prompt_logprobs"]
    assert told[0] is None and len(told) == len(TOKENS)
    first = told[1][str(TOKENS[1])]
    assert (first["logprob"], first["rank"]) == (-1.0, 7) and PROMPT.find(first["decoded_token"]) == 1
    assert told[1][str(TOKENS[1] + 1)]["rank"] == 1
    assert done["choices"][0]["logprobs"] is None
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


@pytest.mark.parametrize("tokens", [0, 3])
async def test_a_moved_request_tells_of_its_prompt_all_the_same(tokens: int) -> None:
    workers = [make_worker("worker-a", script=breaking_after(tokens)), make_worker("worker-b")]
    async with running_gateway(*workers) as gateway:
        done = await completion(gateway, echo=True, logprobs=0, max_tokens=100)
    assert done["choices"][0]["text"] == PROMPT + TEXT
    assert done["choices"][0]["logprobs"]["token_logprobs"][: len(TOKENS)] == SCORED
    moved = workers[1].requests
    if workers[0].requests and moved:
        assert moved[-1].sampling.HasField("prompt_logprobs") == (tokens == 0)


async def test_a_worker_that_tells_nothing_of_the_prompt_is_left() -> None:
    old = Old("worker-a", answer(), make_worker().card)
    options = replace(QUICK, migration_limit=0)
    async with running_gateway(old, options=options) as gateway:
        ask = {"model": MODEL, "prompt": PROMPT, "echo": True, "logprobs": 0}
        told: httpx.Response = await gateway.client.post("/v1/completions", json=ask)
    assert (told.status_code, told.json()["error"]["code"]) == (503, "no_workers")


async def test_chunks_count_on_if_asked_to() -> None:
    async with running_gateway(make_worker(batch=2)) as gateway, gateway.openai() as client:
        options = {"include_usage": True, "continuous_usage_stats": True}
        messages = [{"role": "user", "content": "hello"}]
        ask: Any = {"model": MODEL, "messages": messages, "stream": True, "stream_options": options}
        stream = await client.chat.completions.create(**ask)
        usages = [chunk.usage async for chunk in stream]
    counts = [usage.completion_tokens for usage in usages if usage]
    assert len(usages) == len(counts) and counts == sorted(counts) and counts[-1] == len(answer())
    assert len(set(counts)) > 3


async def test_grpc_clients_are_told_once() -> None:
    sampling = SamplingParams(prompt_logprobs=1)
    async with inference(make_worker(batch=3)) as stub:
        ask = GenerateRequest(model=MODEL, prompt=PROMPT, sampling=sampling, n=2)
        responses = [response async for response in stub.Generate(ask)]
    told = [response for response in responses if response.HasField("prompt_logprobs")]
    assert [response.choice_index for response in told] == [0]
    assert len(told[0].prompt_logprobs.ranks) == 4 * (len(TOKENS) - 1)
