"""Tool calls and reasoning through the `openai` client, with workers that say what models say."""

import json
from typing import Any

import openai
import pytest

from tests.services.gateway.fakes import FakeRouter, FakeWorker, breaking_after
from tests.services.gateway.harness import EOS, MODEL, card, encode, running_gateway
from tests.services.gateway.test_next_turns import HINTED, PATIENT, Outcomes, is_ahead
from tests.support.eventually import eventually

WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
MESSAGES: Any = [{"role": "user", "content": "Weather in Paris and Rome?"}]
PARIS, ROME = '{"city": "Paris 🙂"}', '{"city": "Rome"}'
CALLS = "\n".join(
    f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>' for arguments in (PARIS, ROME)
)
SAID = f"<think>\nTwo cities.\n</think>\n\nLet me look.\n{CALLS}"


def saying(text: str, worker_id: str = "worker-a", **fields: Any) -> FakeWorker:
    described = card(tool_call_parser="hermes", reasoning_parser="think")
    return FakeWorker(worker_id, **({"answer": (*encode(text), EOS), "card": described} | fields))


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> tuple[dict[str, Any], str | None, list[Any]]:
    """The message put together as clients do, why it ended, and the chunks."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    reason, chunks = None, []
    stream: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, **options)
    async for chunk in stream:
        chunks.append(chunk)
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            message["content"] += choice.delta.content or ""
            message["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or []:
                if call.index == len(message["tool_calls"]):
                    message["tool_calls"].append({"id": call.id, "name": call.function.name, "arguments": ""})
                message["tool_calls"][call.index]["arguments"] += call.function.arguments
    return message, reason, chunks


async def test_calls_and_reasoning_are_the_same_streamed_or_not() -> None:
    async with running_gateway(saying(SAID)) as gateway, gateway.openai() as client:
        whole = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER])
        options: Any = {"tools": [WEATHER], "stream_options": {"include_usage": True}}
        message, reason, chunks = await streamed(client, **options)
    answer = whole.choices[0].message
    assert whole.choices[0].finish_reason == reason == "tool_calls"
    assert answer.content == message["content"] == "Let me look."
    assert answer.reasoning_content == message["reasoning_content"] == "Two cities."  # pyright: ignore
    calls: Any = answer.tool_calls
    assert [(call.type, call.function.name, call.function.arguments) for call in calls] == [
        ("function", "get_weather", PARIS),
        ("function", "get_weather", ROME),
    ]
    assert [(call["name"], call["arguments"]) for call in message["tool_calls"]] == [
        ("get_weather", PARIS),
        ("get_weather", ROME),
    ]
    ids = [call.id for call in calls] + [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 4 and all(call_id.startswith("call_") for call_id in ids)
    usage: Any = whole.usage
    assert usage == chunks[-1].usage
    assert usage.completion_tokens == len(encode(SAID)) + 1
    assert usage.completion_tokens_details.reasoning_tokens == len(encode("<think>\nTwo cities."))


async def test_an_answer_moved_to_another_worker_in_a_call_is_the_same() -> None:
    first = saying(SAID, script=breaking_after(len(encode(SAID)) - 9))
    async with running_gateway(first, saying(SAID, "worker-b")) as gateway, gateway.openai() as client:
        message, reason, _ = await streamed(client, tools=[WEATHER])
    assert reason == "tool_calls"
    assert [call["arguments"] for call in message["tool_calls"]] == [PARIS, ROME]


async def test_without_tools_only_reasoning_is_told_apart() -> None:
    async with running_gateway(saying(SAID)) as gateway, gateway.openai() as client:
        for options in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            whole: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, **options)
            assert whole.choices[0].finish_reason == "stop"
            assert whole.choices[0].message.tool_calls is None
            assert whole.choices[0].message.reasoning_content == "Two cities."
            assert whole.choices[0].message.content == f"Let me look.\n{CALLS}"


async def test_without_parallel_calls_the_first_one_counts() -> None:
    async with running_gateway(saying(CALLS)) as gateway, gateway.openai() as client:
        whole: Any = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, tools=[WEATHER], parallel_tool_calls=False
        )
    assert [call.function.arguments for call in whole.choices[0].message.tool_calls] == [PARIS]
    assert whole.choices[0].message.content is None


async def test_log_probabilities_come_with_calls() -> None:
    async with running_gateway(saying(SAID)) as gateway, gateway.openai() as client:
        options: Any = {"tools": [WEATHER], "logprobs": True, "top_logprobs": 2}
        whole: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, **options)
        message, _, chunks = await streamed(client, **options)
    tokens = [
        token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content
    ]
    assert tokens == whole.choices[0].logprobs.content
    assert len(tokens) == len(encode(SAID)) + 1
    assert len(message["tool_calls"]) == 2


async def test_a_cut_off_call_ends_for_its_length() -> None:
    cut = len(encode(f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS[:9]}'))
    async with running_gateway(saying(CALLS)) as gateway, gateway.openai() as client:
        message, reason, _ = await streamed(client, tools=[WEATHER], max_tokens=cut)
    assert reason == "length"
    assert PARIS.startswith(message["tool_calls"][0]["arguments"])


async def test_tools_are_refused_where_the_model_has_no_format_for_calls() -> None:
    async with running_gateway(saying("x", card=card())) as gateway, gateway.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER])
    assert caught.value.param == "tools"
    assert "--tool-call-parser" in caught.value.message


async def test_an_unknown_parser_is_told_to_the_client_and_not_guessed() -> None:
    worker = saying("x", card=card(tool_call_parser="hermse"))
    async with running_gateway(worker) as gateway:
        response = await gateway.chat()
    assert response.status_code == 503
    assert "hermse" in json.loads(response.text)["error"]["message"]


async def test_the_next_turn_after_calls_begins_with_their_result() -> None:
    worker, outcomes = saying(SAID), Outcomes()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router], options=PATIENT) as gateway:
        response = await gateway.chat(armature=HINTED, tools=[WEATHER], messages=MESSAGES)
        await eventually(lambda: sum(outcomes.seen().values()) == 1)
        ahead = [query for query in router.queries if is_ahead(query)]
        assert len(ahead) == 1, outcomes.seen()
        message = response.json()["choices"][0]["message"]
        message.pop("reasoning_content")
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "20 °C"} for call in message["tool_calls"]]
        await gateway.chat(tools=[WEATHER], messages=[*MESSAGES, message, *results])
    first, prepared, second = worker.requests
    assert prepared.prompt_tokens <= second.prompt_tokens
    assert prepared.token_ids == second.token_ids[: len(prepared.token_ids)]
    assert prepared.prompt_tokens > first.prompt_tokens


async def test_responses_and_messages_tell_calls_and_reasoning_apart_too() -> None:
    flat = {"type": "function", **WEATHER["function"]}
    named = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    async with running_gateway(saying(SAID)) as gateway:
        response = await gateway.client.post(
            "/v1/responses", json={"model": MODEL, "input": "Weather?", "tools": [flat], "store": False}
        )
        answer = response.json()
        asked = {"role": "user", "content": "Weather?"}
        called = {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Paris"}}
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "22 °C"}
        messages = [asked, {"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
        message = (
            await gateway.client.post(
                "/v1/messages", json={"model": MODEL, "max_tokens": 300, "messages": messages, "tools": [named]}
            )
        ).json()
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["arguments"] for item in answer["output"][2:]] == [PARIS, ROME]
    assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] == len(encode("<think>\nTwo cities."))
    assert message["stop_reason"] == "tool_use"
    assert [block["input"] for block in message["content"] if block["type"] == "tool_use"] == [
        json.loads(PARIS),
        json.loads(ROME),
    ]


async def test_what_must_match_something_may_be_a_call_instead() -> None:
    wanted: Any = {"tools": [WEATHER], "response_format": {"type": "json_object"}}
    for said, content, reason in ((CALLS, None, "tool_calls"), ('{"sky": "blue"}', '{"sky": "blue"}', "stop")):
        worker = saying(said)
        async with running_gateway(worker) as gateway, gateway.openai() as client:
            done = await client.chat.completions.create(model=MODEL, messages=MESSAGES, **wanted)
            assert (done.choices[0].message.content, done.choices[0].finish_reason) == (content, reason)
            assert "answer: %json" in worker.requests[0].grammar.ebnf
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, **wanted, tool_choice="none")
            assert worker.requests[1].grammar.json_object
            with pytest.raises(openai.BadRequestError) as refused:
                lark: Any = {"tools": [WEATHER], "extra_body": {"guided_grammar": 'start: "x"'}}
                await client.chat.completions.create(model=MODEL, messages=MESSAGES, **lark)
            assert refused.value.param == "guided_grammar"


async def test_only_strict_functions_make_workers_follow_a_grammar_where_a_model_need_not_call() -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    worker = saying(SAID)
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        for tool in (WEATHER, strict):
            made: Any = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[tool])
            assert len(made.choices[0].message.tool_calls) == 2
        impossible = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
        refused = {"type": "function", "function": {"name": "f", "parameters": impossible, "strict": True}}
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[refused])
        assert caught.value.param == "tools"
    free, bound = worker.requests
    assert not free.HasField("grammar")
    assert "arguments_0: %json" in bound.grammar.ebnf
