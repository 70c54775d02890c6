"""Tool calls, reasoning and structured output over the Responses and Messages APIs, with workers that say them."""

import json
from typing import Any

import pytest

from tests.services.gateway.harness import MODEL, encode, running_gateway
from tests.services.gateway.test_messages import events_of as message_events
from tests.services.gateway.test_messages import prompt_of
from tests.services.gateway.test_responses import events_of as response_events
from tests.services.gateway.test_tool_calls import PARIS, ROME, SAID, WEATHER, saying

QUESTION = "Weather in Paris and Rome?"
TOOL: Any = {"type": "function", **WEATHER["function"]}
SCHEMA: Any = WEATHER["function"]["parameters"]
CUSTOM: Any = {"name": "get_weather", "input_schema": SCHEMA}
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


async def test_a_response_has_items_for_reasoning_text_and_calls() -> None:
    async with running_gateway(saying(SAID)) as gateway, gateway.openai() as client:
        whole = await client.responses.create(model=MODEL, input=QUESTION, tools=[TOOL])
        body = {"model": MODEL, "input": QUESTION, "tools": [TOOL], "stream": True}
        events = response_events(await gateway.client.post("/v1/responses", json=body))
        async with client.responses.stream(model=MODEL, input=QUESTION, tools=[TOOL]) as stream:
            streamed = await stream.get_final_response()
    reasoning, message, *calls = whole.output
    assert reasoning.content[0].text == "Two cities."  # pyright: ignore
    assert whole.output_text == message.content[0].text == "Let me look."  # pyright: ignore
    assert [(call.type, call.name, call.arguments) for call in calls] == [  # pyright: ignore
        ("function_call", "get_weather", PARIS), ("function_call", "get_weather", ROME),
    ]  # fmt: skip
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens == len(encode("<think>\nTwo cities."))
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]

    deltas = ("reasoning_text", "output_text", "function_call_arguments")
    told = {kind: "".join(e["delta"] for e in events if e["type"] == f"response.{kind}.delta") for kind in deltas}
    assert told == dict(zip(deltas, ("Two cities.", "Let me look.", PARIS + ROME), strict=True))
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2, 3]
    assert [event["item"] for event in done] == events[-1]["response"]["output"]


async def test_a_response_goes_on_with_the_results_of_its_calls() -> None:
    worker = saying(SAID)
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        first = await client.responses.create(model=MODEL, input=QUESTION, tools=[TOOL])
        results: Any = [
            {"type": "function_call_output", "call_id": item.call_id, "output": f"{number} degrees"}
            for number, item in enumerate(first.output)
            if item.type == "function_call"
        ]
        second = await client.responses.create(model=MODEL, previous_response_id=first.id, input=results, tools=[TOOL])
        by_hand: Any = [{"role": "user", "content": QUESTION}, *[item.to_dict() for item in first.output], *results]
        await client.responses.create(model=MODEL, input=by_hand, tools=[TOOL])
    assert second.status == "completed"
    _, kept, sent = map(prompt_of, worker.requests)
    assert kept == sent
    assert kept.index(QUESTION) < kept.index("Let me look.") < kept.index("2 degrees") < kept.index("3 degrees")


async def test_only_allowed_tools_are_offered() -> None:
    worker = saying("Hm.")
    other = {**TOOL, "name": "get_time"}
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]}
        whole = await client.responses.create(model=MODEL, input="x", tools=[TOOL, other], tool_choice=choice)
    assert whole.output_text == "Hm."
    assert [tool.name for tool in whole.tools] == ["get_weather", "get_time"]  # pyright: ignore


async def test_a_message_has_blocks_for_thinking_text_and_calls() -> None:
    options: Any = {"model": MODEL, "max_tokens": 300, "messages": [{"role": "user", "content": QUESTION}]}
    options |= {"tools": [CUSTOM], "thinking": THINKING}
    async with running_gateway(saying(SAID)) as gateway, gateway.anthropic() as client:
        whole = await client.messages.create(**options)
        async with client.messages.stream(**options) as stream:
            streamed = await stream.get_final_message()
        events = message_events(await gateway.client.post("/v1/messages", json=options | {"stream": True}))
        silent = await client.messages.create(**options | {"thinking": {"type": "disabled"}})
    thinking, text, *calls = whole.content
    assert (thinking.thinking, text.text) == ("Two cities.", "Let me look.")  # pyright: ignore
    assert [(call.name, call.input) for call in calls] == [  # pyright: ignore
        ("get_weather", json.loads(PARIS)), ("get_weather", json.loads(ROME)),
    ]  # fmt: skip
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    shown = [[{**block.to_dict(), "id": ""} for block in message.content] for message in (whole, streamed)]
    assert shown[0] == shown[1]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [block.type for block in silent.content] == ["text", "tool_use", "tool_use"]
    assert silent.usage == whole.usage


async def test_a_message_goes_on_with_the_results_of_its_calls() -> None:
    worker = saying(SAID)
    messages: Any = [{"role": "user", "content": QUESTION}]
    options: Any = {"model": MODEL, "max_tokens": 300, "tools": [CUSTOM], "thinking": THINKING}
    async with running_gateway(worker) as gateway, gateway.anthropic() as client:
        first = await client.messages.create(messages=messages, **options)
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"{number} degrees", "is_error": number == 3}
            for number, block in enumerate(first.content)
            if block.type == "tool_use"
        ]
        messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        await client.messages.create(messages=messages, **options)
    prompt = prompt_of(worker.requests[1])
    assert prompt.index("Let me look.") < prompt.index("2 degrees") < prompt.index("Error: 3 degrees")


async def test_a_call_that_is_cut_off_is_told_as_far_as_it_goes() -> None:
    most = len(encode(SAID[: SAID.rindex("Rome")]))
    options: Any = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "tools": [CUSTOM]}
    async with running_gateway(saying(SAID)) as gateway:
        response = (
            await gateway.openai().responses.create(model=MODEL, input=QUESTION, tools=[TOOL], max_output_tokens=most)
        ).output[-1]
        message = await gateway.anthropic().messages.create(**options, max_tokens=most)
    assert response.status == "incomplete" and ROME.startswith(response.arguments)  # pyright: ignore
    assert (message.stop_reason, message.content[-1].input) == ("max_tokens", {})  # pyright: ignore


@pytest.mark.parametrize("surface", ["responses", "messages"])
async def test_a_schema_reaches_the_worker(surface: str) -> None:
    worker = saying('{"city": "Rome"}')
    async with running_gateway(worker) as gateway:
        if surface == "responses":
            wanted: Any = {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA, "strict": True}}
            whole = await gateway.openai().responses.create(model=MODEL, input="x", text=wanted)
            assert json.loads(whole.output_text) == {"city": "Rome"}
            assert whole.text is not None and whole.text.format is not None
            assert whole.text.format.to_dict() == wanted["format"]
        else:
            config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
            message = await gateway.anthropic().messages.create(
                model=MODEL, max_tokens=99, messages=[{"role": "user", "content": "x"}], output_config=config
            )
            assert message.content[0].text == '{"city": "Rome"}'  # pyright: ignore
    assert json.loads(worker.requests[0].grammar.json_schema) == SCHEMA
