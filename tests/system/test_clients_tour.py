"""A tour of the conversational APIs with the clients that people use, against a cell with a real model and a Valkey."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from armature.runtime.processes import start_valkey
from tests.support.cell import Cell, running_cell

QUESTION = "What does os.path.join do?"
GREEDY: dict[str, Any] = {"temperature": 0}


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    folder: Path = tmp_path_factory.mktemp("tour")
    valkey = await start_valkey(folder / "valkey")
    flags = {"gateway": ("--redis", f"redis://{valkey.address}", "--redis-timeout-s", "10")}
    async with running_cell(folder, etcd_address, prefill=0, decode=0, aggregated=1, flags=flags) as cell:
        yield cell
    await valkey.kill()


@pytest.fixture(scope="module")
async def openai(cell: Cell) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{cell.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
async def anthropic(cell: Cell) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=cell.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


async def test_a_response_says_what_a_chat_says_streamed_or_not(openai: AsyncOpenAI) -> None:
    chat = await openai.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": QUESTION}], max_tokens=30, temperature=0
    )
    whole = await openai.responses.create(model="demo", input=QUESTION, max_output_tokens=30, temperature=0)
    async with openai.responses.stream(model="demo", input=QUESTION, max_output_tokens=30, temperature=0) as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
    assert whole.output_text == "".join(deltas) == chat.choices[0].message.content
    assert whole.usage is not None and chat.usage is not None
    assert whole.usage.total_tokens == chat.usage.total_tokens


async def test_a_conversation_is_kept_by_the_gateway_and_its_blocks_by_the_worker(openai: AsyncOpenAI) -> None:
    first = await openai.responses.create(
        model="demo", input=QUESTION, instructions="Answer with care. " * 10, max_output_tokens=20, **GREEDY
    )
    turns: Any = {"instructions": "Answer with care. " * 10, "max_output_tokens": 20, **GREEDY}
    second = await openai.responses.create(model="demo", previous_response_id=first.id, input="And then?", **turns)
    by_hand = await openai.responses.create(
        model="demo",
        input=[
            {"role": "user", "content": QUESTION},
            *[item.model_dump(exclude_none=True) for item in first.output],  # pyright: ignore
            {"role": "user", "content": "And then?"},
        ],
        store=False,
        **turns,
    )
    assert second.usage is not None and by_hand.usage is not None and first.usage is not None
    assert second.output_text == by_hand.output_text
    assert second.usage.input_tokens == by_hand.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert (await openai.responses.retrieve(second.id)).previous_response_id == first.id
    await openai.responses.delete(first.id)


async def test_a_message_says_what_a_chat_says_streamed_or_not(openai: AsyncOpenAI, anthropic: AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    chat = await openai.chat.completions.create(model="demo", messages=messages, max_tokens=30, temperature=0)
    options: Any = {"model": "demo", "messages": messages, "max_tokens": 30, "extra_body": GREEDY}
    whole = await anthropic.messages.create(**options)
    async with anthropic.messages.stream(**options) as stream:
        text = "".join([part async for part in stream.text_stream])
        streamed = await stream.get_final_message()
    assert whole.content[0].text == text == chat.choices[0].message.content  # pyright: ignore
    assert whole.stop_reason == streamed.stop_reason
    assert chat.usage is not None
    assert whole.usage.output_tokens == streamed.usage.output_tokens == chat.usage.completion_tokens
    counted = await anthropic.messages.count_tokens(model="demo", messages=messages)
    assert counted.input_tokens == chat.usage.prompt_tokens


SCHEMA: Any = {
    "type": "object",
    "properties": {"kind": {"enum": ["function", "module"]}, "arguments": {"type": "integer", "maximum": 9}},
    "required": ["kind", "arguments"],
    "additionalProperties": False,
}


async def test_answers_are_valid_under_a_schema(openai: AsyncOpenAI, anthropic: AsyncAnthropic) -> None:
    wanted: Any = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    whole = await openai.responses.create(model="demo", input=QUESTION, text=wanted, temperature=0)
    async with openai.responses.stream(model="demo", input=QUESTION, text=wanted, temperature=0) as stream:
        streamed = await stream.get_final_response()
    message = await anthropic.messages.create(
        model="demo",
        max_tokens=200,
        messages=[{"role": "user", "content": QUESTION}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        extra_body=GREEDY,
    )
    assert message.content[0].type == "text"
    for text in (whole.output_text, streamed.output_text, message.content[0].text):
        jsonschema.validate(json.loads(text), SCHEMA)


async def test_calls_are_made_and_their_results_taken_back(openai: AsyncOpenAI, anthropic: AsyncAnthropic) -> None:
    tool: Any = {"type": "function", "name": "look_up", "description": "Looks something up.", "parameters": SCHEMA}
    options: Any = {"model": "demo", "tools": [tool], "max_output_tokens": 200, **GREEDY}
    first = await openai.responses.create(input=QUESTION, tool_choice="required", **options)
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls and {call.name for call in calls} == {"look_up"}
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMA)
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "It joins."} for call in calls]
    second = await openai.responses.create(previous_response_id=first.id, input=results, tool_choice="none", **options)
    assert [item.type for item in second.output] == ["message"]

    custom: Any = {"name": "look_up", "description": "Looks something up.", "input_schema": SCHEMA}
    messages: Any = [{"role": "user", "content": QUESTION}]
    options = {"model": "demo", "max_tokens": 200, "tools": [custom], "extra_body": GREEDY}
    async with anthropic.messages.stream(messages=messages, tool_choice={"type": "any"}, **options) as stream:
        asked = await stream.get_final_message()
    uses = [block for block in asked.content if block.type == "tool_use"]
    assert asked.stop_reason == "tool_use"
    for use in uses:
        jsonschema.validate(use.input, SCHEMA)
    found: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "It joins."} for use in uses]
    messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": found}]
    answer = await anthropic.messages.create(messages=messages, tool_choice={"type": "none"}, **options)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    counted = await anthropic.messages.count_tokens(model="demo", messages=messages, tools=[custom])
    assert counted.input_tokens > asked.usage.input_tokens + (asked.usage.cache_read_input_tokens or 0)
