"""Tool calls as clients use them, on a cell like `make serve`: the demo model calls because a grammar makes it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.support.cell import running_cell

pytestmark = pytest.mark.slow

UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
CITY = {"type": "string", "enum": ["Paris", "Rome"]}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "unit": UNIT, "days": {"type": "array", "items": UNIT, "maxItems": 2}},
            "required": ["city", "unit", "days"],
        },
    },
}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
QUESTION: Any = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture(scope="module")
async def client(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running_cell(tmp_path_factory.mktemp("tools"), etcd_address) as cell,
        openai.AsyncOpenAI(base_url=f"{cell.url}/v1", api_key="unused", max_retries=0, timeout=60) as client,
    ):
        yield client


def check_weather(arguments: str) -> None:
    decoded = json.loads(arguments)
    assert decoded.keys() == {"city", "unit", "days"}
    assert decoded["city"] in CITY["enum"] and decoded["unit"] in UNIT["enum"]
    assert len(decoded["days"]) <= 2 and all(day in UNIT["enum"] for day in decoded["days"])


async def test_a_conversation_with_a_tool_from_the_call_to_the_answer(client: openai.AsyncOpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    options: Any = {"model": "demo", "tools": [WEATHER, TIME], "tool_choice": named, "seed": 1, "max_tokens": 200}
    called = await client.chat.completions.create(messages=[QUESTION], **options)
    assert called.choices[0].finish_reason == "tool_calls"
    assert called.choices[0].message.content is None
    calls: Any = called.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"]
    check_weather(calls[0].function.arguments)

    names, arguments, reason = [], "", None
    async for chunk in await client.chat.completions.create(messages=[QUESTION], stream=True, **options):
        reason = chunk.choices[0].finish_reason or reason
        for call in chunk.choices[0].delta.tool_calls or []:
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments
    assert (names, arguments, reason) == (["get_weather"], calls[0].function.arguments, "tool_calls")

    result: Any = {"role": "tool", "tool_call_id": calls[0].id, "content": "22 °C"}
    messages: Any = [QUESTION, called.choices[0].message.model_dump(exclude_none=True), result]
    answered = await client.chat.completions.create(
        model="demo", messages=messages, tools=[WEATHER, TIME], temperature=0, max_tokens=20
    )
    assert answered.choices[0].message.content
    assert answered.choices[0].message.tool_calls is None


async def test_required_calls_are_calls_of_what_is_offered(client: openai.AsyncOpenAI) -> None:
    for seed in range(4):
        is_parallel = bool(seed % 2)
        made: Any = await client.chat.completions.create(
            model="demo", messages=[QUESTION], tools=[WEATHER, TIME], tool_choice="required", seed=seed,
            parallel_tool_calls=is_parallel, max_tokens=900,
        )  # fmt: skip
        assert made.choices[0].finish_reason == "tool_calls"
        calls = made.choices[0].message.tool_calls
        assert len(calls) == 1 or is_parallel
        for call in calls:
            if call.function.name == "get_weather":
                check_weather(call.function.arguments)
            else:
                assert (call.function.name, call.function.arguments) == ("get_time", "{}")


async def test_the_responses_and_messages_apis_call_too(client: openai.AsyncOpenAI) -> None:
    flat: Any = {"type": "function", **WEATHER["function"]}
    made = await client.responses.create(
        model="demo", input="Weather in Paris?", tools=[flat], tool_choice="required", store=False,
        parallel_tool_calls=False, max_output_tokens=200,
    )  # fmt: skip
    call: Any = made.output[0]
    assert (call.type, call.name) == ("function_call", "get_weather")
    check_weather(call.arguments)
    body = {
        "model": "demo", "max_tokens": 200, "messages": [QUESTION], "tool_choice": {"type": "any"},
        "tools": [{"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}],
    }  # fmt: skip
    response: Any = await client.post("/messages", body=body, cast_to=object)
    assert response["stop_reason"] == "tool_use"
    assert response["content"][0]["name"] == "get_weather"
    check_weather(json.dumps(response["content"][0]["input"]))
