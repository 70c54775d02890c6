"""The Messages API through the `anthropic` client, against a gateway with scripted workers behind it."""

import json
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from armature.openai.serving.options import ServingOptions
from armature.v1.worker_pb2 import WorkerError
from tests.services.gateway.fakes import breaking_after, error
from tests.services.gateway.harness import MODEL, TEXT, answer, make_worker, running_gateway, tokenizer

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
HELLO: Any = [{"role": "user", "content": "Where is it?"}]
BODY: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": HELLO}


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be one that Anthropic's types allow."""
    events: list[dict[str, Any]] = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        if events[-1]["type"] not in ("ping", "error"):  # the client handles these itself
            EVENT.validate_python(events[-1], strict=True)
    return events


def prompt_of(request: Any) -> str:
    ids = memoryview(request.token_ids).cast("I").tolist()
    return tokenizer().vocabulary.tokenizer.decode(ids, skip_special_tokens=False)


async def test_a_message_is_the_same_streamed_or_not() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.anthropic() as client:
        whole = await client.messages.create(**BODY)
        async with client.messages.stream(**BODY) as stream:
            seen = "".join([text async for text in stream.text_stream])
            streamed = await stream.get_final_message()
    assert whole.content[0].text == seen == streamed.content[0].text == TEXT  # pyright: ignore
    assert (whole.stop_reason, streamed.stop_reason) == ("end_turn", "end_turn")
    assert whole.usage == streamed.usage
    assert whole._request_id and whole.id.endswith(whole._request_id)
    assert (whole.usage.cache_read_input_tokens, whole.usage.output_tokens) == (4, len(answer()))
    Message.model_validate(whole.model_dump(), strict=True)


async def test_the_events_of_a_stream_are_those_of_the_api_in_their_order() -> None:
    async with running_gateway(make_worker(batch=7)) as gateway:
        events = events_of(await gateway.client.post("/v1/messages", json=BODY | {"stream": True}))
    kinds = [event["type"] for event in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert deltas > 1
    assert "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta") == TEXT


async def test_the_whole_conversation_reaches_the_template() -> None:
    worker = make_worker()
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "three"},
        ]},
        {"role": "user", "content": "four"},
    ]  # fmt: skip
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    async with running_gateway(worker) as gateway, gateway.anthropic() as client:
        await client.messages.create(
            model=MODEL, max_tokens=5, system=system, messages=messages, extra_body={"temperature": 0.5}
        )
    (request,) = worker.requests
    prompt = prompt_of(request)
    places = [prompt.index(text) for text in ("system", "Be brief.", "one\ntwo", "assistant", "three", "four")]
    assert places == sorted(places)
    assert request.max_tokens == 5
    assert request.sampling.temperature == 0.5


async def test_what_agents_send_with_everything_is_taken() -> None:
    """Of a context that they would have edited they hear that it was not."""
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": "Of maps."},
        "title": "Atlas",
    }
    found = {"type": "search_result", "source": "x", "title": "Found", "content": [{"type": "text", "text": "It."}]}
    more = {
        "messages": [{"role": "user", "content": [document, found, {"type": "text", "text": "Where?"}]}],
        "context_management": edits, "metadata": {"user_id": "u"}, "service_tier": "auto", "container": None,
        "thinking": {"type": "between_tools"}, "mcp_servers": [],
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "scope": "global"}}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "defer_loading": True}],
        "tool_choice": {"type": "none"},
    }  # fmt: skip
    worker = make_worker()
    async with running_gateway(worker) as gateway:
        whole = await gateway.client.post("/v1/messages?beta=true", json=BODY | more)
        streamed = await gateway.client.post("/v1/messages?beta=true", json=BODY | more | {"stream": True})
        plain = await gateway.client.post("/v1/messages", json=BODY)
    assert whole.json()["context_management"] == {"applied_edits": []}
    (delta,) = [event for event in events_of(streamed) if event["type"] == "message_delta"]
    assert delta["context_management"] == {"applied_edits": []}
    assert "context_management" not in plain.json()
    assert "Atlas\nOf maps.\nFound\nIt.\nWhere?" in prompt_of(worker.requests[0])


async def test_models_are_listed_for_both_kinds_of_clients() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.anthropic() as client, gateway.openai() as other:
        (model,) = [one async for one in client.models.list()]
        (same,) = [one async for one in other.models.list()]
    assert (model.type, model.display_name, model.max_input_tokens) == ("model", MODEL, 512)
    assert model.created_at.timestamp() == same.created


async def test_an_answer_ends_for_length_or_at_a_stop_sequence_and_says_at_which() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.anthropic() as client:
        cut = await client.messages.create(model=MODEL, max_tokens=3, messages=HELLO)
        stopped = await client.messages.create(**BODY, stop_sequences=["🚀", "has which"])
        async with client.messages.stream(**BODY, stop_sequences=["🚀", "has which"]) as stream:
            streamed = await stream.get_final_message()
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    for message in (stopped, streamed):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "has which")
        assert message.content[0].text == "The router knows which worker "  # pyright: ignore


async def test_tokens_are_counted_as_a_message_with_the_same_prompt_uses_them() -> None:
    worker = make_worker()
    fields: Any = {"model": MODEL, "system": "Be brief.", "messages": HELLO}
    async with running_gateway(worker) as gateway, gateway.anthropic() as client:
        counted = await client.messages.count_tokens(**fields)
        message = await client.messages.create(**fields, max_tokens=3)
    assert len(worker.requests) == 1
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


async def test_errors_are_the_clients_classes_and_have_anthropics_shape() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.anthropic() as client:
        with pytest.raises(anthropic.NotFoundError, match="nobody"):
            await client.messages.create(**BODY | {"model": "nobody"})
        with pytest.raises(anthropic.BadRequestError, match="temperature") as wrong:
            await client.messages.create(**BODY, extra_body={"temperature": 9})
        missing = await gateway.client.post("/v1/messages", json={"model": MODEL, "messages": HELLO})
    assert wrong.value.body["type"] == "error"  # pyright: ignore
    assert missing.status_code == 400
    assert missing.json()["error"] == {
        "type": "invalid_request_error", "message": "Missing required parameter: 'max_tokens'",
    }  # fmt: skip


async def test_a_gateway_with_too_much_to_do_says_so_in_anthropics_way() -> None:
    async with running_gateway(make_worker(), options=ServingOptions(max_concurrent_requests=1)) as gateway:
        with gateway.core.admitted():
            answer = await gateway.client.post("/v1/messages", json=BODY)
    assert (answer.status_code, answer.json()["error"]["type"]) == (529, "overloaded_error")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_failure_in_mid_stream_is_an_error_event() -> None:
    worker = make_worker(script=breaking_after(4, error(WorkerError.CODE_INVALID, "can't go on")))
    async with running_gateway(worker) as gateway, gateway.anthropic() as client:
        last = events_of(await gateway.client.post("/v1/messages", json=BODY | {"stream": True}))[-1]
        with pytest.raises(anthropic.APIStatusError, match="can't go on"):
            async with client.messages.stream(**BODY) as stream:
                await stream.get_final_message()
    assert last["type"] == "error"
    assert last["error"]["type"] == "invalid_request_error"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].source.type"),
    ({"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]}, "tool_use_id"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"temperature": -1}, "temperature"),
    ({"thinking": {"type": "sometimes"}}, "thinking.type"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "some"}}, "tool_choice.type"),
    ({"output_config": {"format": {"type": "yaml"}}}, "output_config.format"),
    ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
    ({"cache_control": {"type": "ephemeral", "ttl": "1y"}}, "cache_control.ttl"),
]


@pytest.fixture(scope="module")
async def client() -> Any:
    async with running_gateway(make_worker()) as gateway:
        yield gateway.client


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:50])
async def test_what_cannot_be_done_is_refused_by_name(client: httpx.AsyncClient, fields: Any, param: str) -> None:
    answer = await client.post("/v1/messages", json=BODY | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert param in answer.json()["error"]["message"]
