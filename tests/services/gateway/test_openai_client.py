"""The `openai` client against a gateway with scripted workers behind it."""

from typing import Any

import openai
import pytest

from armature.v1.worker_pb2 import WorkerError
from tests.services.gateway.fakes import breaking_after, error
from tests.services.gateway.harness import MODEL, TEXT, answer, encode, make_worker, running_gateway
from tests.support.eventually import eventually

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}]
INFO = {"armature": {"include_info": True}}


async def streamed_chat(client: openai.AsyncOpenAI, **options: Any) -> tuple[str, str | None, list[Any]]:
    text, reason, chunks = "", None, []
    stream: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **options)
    async for chunk in stream:
        chunks.append(chunk)
        for choice in chunk.choices:
            assert reason is None
            text += choice.delta.content or ""
            reason = choice.finish_reason
    return text, reason, chunks


async def test_a_chat_answer_is_the_same_streamed_or_not() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        text, reason, chunks = await streamed_chat(client, stream_options={"include_usage": True})
    assert whole.choices[0].message.content == text == TEXT
    assert whole.choices[0].finish_reason == reason == "stop"
    assert whole.usage is not None
    assert whole.usage == chunks[-1].usage
    assert whole.usage.completion_tokens == len(answer())
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens == 4
    assert chunks[0].choices[0].delta.role == "assistant"


async def test_a_completion_is_the_same_streamed_or_not() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        whole = await client.completions.create(model=MODEL, prompt="It is", max_tokens=100)
        stream = await client.completions.create(model=MODEL, prompt=encode("It is"), max_tokens=100, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.choices[0].text == text == TEXT


async def test_models_are_those_of_the_workers() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
        gateway.tell("left", worker.member)
        assert [model.id async for model in client.models.list()] == []
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve(MODEL)


async def test_max_tokens_ends_an_answer_for_length() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        text, reason, _ = await streamed_chat(client, max_tokens=3)
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=3)
    assert text == whole.choices[0].message.content == "The router"
    assert reason == whole.choices[0].finish_reason == "length"


@pytest.mark.parametrize("batch", [1, 2, 7])
async def test_a_stop_string_ends_the_answer_and_the_work(batch: int) -> None:
    worker = make_worker(batch=batch)
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        text, reason, chunks = await streamed_chat(
            client, stop=["has which", "🚀"], stream_options={"include_usage": True}
        )
        assert (text, reason) == ("The router knows which worker ", "stop")
        await eventually(lambda: worker.cancelled or worker.finished, what="the worker is told")
    assert chunks[-1].usage.completion_tokens < len(answer())


async def test_log_probabilities_have_both_shapes() -> None:
    async with running_gateway(make_worker(batch=3)) as gateway, gateway.openai() as client:
        chat = await client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3)
        text, _, chunks = await streamed_chat(client, logprobs=True, top_logprobs=3)
        legacy = await client.completions.create(model=MODEL, prompt="x", logprobs=2, max_tokens=50)
    assert chat.choices[0].logprobs is not None
    entries = chat.choices[0].logprobs.content or []
    assert len(entries) == len(answer())
    assert b"".join(bytes(entry.bytes or []) for entry in entries[:-1]).decode() == TEXT == text
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    parts = [c.choices[0].logprobs for c in chunks if c.choices and c.choices[0].logprobs]
    streamed = [entry for part in parts for entry in part.content]
    assert streamed == entries
    logprobs = legacy.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None and logprobs.text_offset is not None
    assert len(logprobs.tokens) == len(answer())
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        if "\ufffd" not in token and token != "<|im_end|>":
            assert legacy.choices[0].text[offset:].startswith(token)


async def test_how_a_request_was_served_is_told_on_request() -> None:
    async with running_gateway(make_worker("worker-7")) as gateway, gateway.openai() as client:
        plain = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body=INFO)
        _, _, chunks = await streamed_chat(client, extra_headers={"x-armature-info": "true"})
    assert "armature" not in (plain.model_extra or {})
    info = (whole.model_extra or {})["armature"]
    assert (info["decode_worker"], info["migrations"], info["reason"]) == ("worker-7", 0, "the first")
    assert info["ttft_s"] > 0
    assert chunks[-1].model_extra["armature"]["decode_worker"] == "worker-7"


async def test_requests_say_to_the_worker_what_clients_said() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, temperature=0, seed=7, max_tokens=5, extra_body={"top_k": 3, "min_p": 0.5}
        )
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)
    first, second, third = worker.requests
    assert (first.sampling.temperature, first.sampling.seed, first.sampling.top_k, first.max_tokens) == (0, 7, 3, 5)
    assert first.sampling.HasField("temperature")
    assert second.sampling.seed != third.sampling.seed  # without a seed every request gets its own
    assert second.max_tokens == 512 - second.prompt_tokens
    assert first.prompt_tokens == len(first.token_ids) // 4
    assert 0 < first.timeout_s <= 10


async def test_errors_are_the_clients_classes() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="nobody", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=9)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert (wrong.value.code, wrong.value.param) == ("invalid_value", "temperature")


async def test_an_error_in_mid_stream_is_the_clients_api_error() -> None:
    worker = make_worker(script=breaking_after(4, error(WorkerError.CODE_INVALID, "can't go on")))
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        seen = ""
        with pytest.raises(openai.APIError, match="can't go on"):
            stream: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            async for chunk in stream:
                seen += chunk.choices[0].delta.content or ""
    assert seen and TEXT.startswith(seen)
