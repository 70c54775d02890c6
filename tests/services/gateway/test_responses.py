"""The Responses API through the `openai` client, against a gateway with scripted workers behind it."""

import json
import re
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, digest_of, new_key
from armature.v1.worker_pb2 import WorkerError
from tests.services.gateway.fakes import breaking_after, error
from tests.services.gateway.harness import MODEL, TEXT, answer, make_worker, running_gateway, tokenizer

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PARTS = ["response.output_item.added", "response.content_part.added"]
ENDS = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, each of which must be one that OpenAI's types allow."""
    events: list[dict[str, Any]] = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        EVENT.validate_python(events[-1], strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def prompt_of(request: Any) -> str:
    ids = memoryview(request.token_ids).cast("I").tolist()
    return tokenizer().vocabulary.tokenizer.decode(ids, skip_special_tokens=False)


async def test_a_response_is_the_same_streamed_or_not_and_can_be_had_again() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        whole = await client.responses.create(model=MODEL, input="Where is it?", metadata={"a": "b"})
        assert await client.responses.retrieve(whole.id) == whole
        async with client.responses.stream(model=MODEL, input="Where is it?", metadata={"a": "b"}) as stream:
            seen = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            streamed = await stream.get_final_response()
        again = await client.responses.retrieve(streamed.id)
    assert whole.output_text == seen == streamed.output_text == again.output_text == TEXT
    assert whole.status == again.status == "completed"
    assert whole.usage is not None
    assert (whole.usage, whole.metadata) == (again.usage, again.metadata)
    assert (whole.usage.output_tokens, whole.usage.input_tokens_details.cached_tokens) == (len(answer()), 4)
    Response.model_validate(whole.model_dump(), strict=True)


async def test_the_events_of_a_stream_are_those_of_the_api_in_their_order() -> None:
    async with running_gateway(make_worker(batch=7)) as gateway:
        body = {"model": MODEL, "input": "x", "stream": True}
        events = events_of(await gateway.client.post("/v1/responses", json=body))
    kinds = [event["type"] for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created", "response.in_progress", *PARTS, *["response.output_text.delta"] * deltas, *ENDS,
        "response.completed",
    ]  # fmt: skip
    assert deltas > 1
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == TEXT
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert events[0]["response"]["status"] == "in_progress"


async def test_a_response_goes_on_from_the_one_before() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        first = await client.responses.create(model=MODEL, input="The first.", instructions="Be brief.")
        second = await client.responses.create(
            model=MODEL, previous_response_id=first.id, input=[{"role": "user", "content": "The second."}]
        )
        third = await client.responses.create(model=MODEL, previous_response_id=second.id, input="The third.")
        items = [item async for item in client.responses.input_items.list(third.id)]
        await client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError, match=first.id) as gone:
            await client.responses.create(model=MODEL, previous_response_id=second.id, input="x")
    one, two, three = map(prompt_of, worker.requests)
    assert "Be brief." in one and "Be brief." not in two  # instructions are of one response only
    said = re.split(r"(The first\.|The second\.|The third\.)", three)
    assert [said[1], said[3], said[5]] == ["The first.", "The second.", "The third."]
    assert TEXT in said[2] and TEXT in said[4]
    assert [item.content[0].text for item in items] == ["The third."]  # pyright: ignore
    assert (gone.value.code, gone.value.param) == ("previous_response_not_found", "previous_response_id")
    assert third.previous_response_id == second.id


async def test_how_a_response_was_served_is_told_on_request() -> None:
    async with running_gateway(make_worker("worker-7")) as gateway, gateway.openai() as client:
        whole = await client.responses.create(model=MODEL, input="x", extra_body={"armature": {"include_info": True}})
        other = await client.responses.create(model=MODEL, input="x", extra_headers={"x-armature-info": "true"})
    for response in (whole, other):
        assert (response.model_extra or {})["armature"]["decode_worker"] == "worker-7"


async def test_what_is_not_stored_is_not_found() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        unstored = await client.responses.create(model=MODEL, input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(unstored.id)
        stored = await client.responses.create(model=MODEL, input="x")
        with pytest.raises(openai.BadRequestError, match="connection is closed"):
            await client.responses.cancel(stored.id)
        await client.responses.delete(stored.id)
        for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError) as caught:
                await call(stored.id)
            assert caught.value.code == "response_not_found"


async def test_another_tenant_can_neither_read_nor_go_on_from_a_response() -> None:
    keys = {tenant: new_key()[0] for tenant in ("acme", "globex")}
    entries = {key[:12]: KeyEntry(tenant=tenant, digest=digest_of(key)) for tenant, key in keys.items()}
    async with running_gateway(make_worker()) as gateway:
        gateway.core.doorkeeper.table = KeyTable(KeyBook(keys=entries, tenants={}))
        acme, globex = [gateway.openai(api_key=key) for key in keys.values()]
        first = await acme.responses.create(model=MODEL, input="x")
        assert (await acme.responses.retrieve(first.id)).id == first.id
        with pytest.raises(openai.NotFoundError):
            await globex.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError):
            await globex.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError, match="There is no response"):
            await globex.responses.create(model=MODEL, previous_response_id=first.id, input="x")


async def test_input_items_come_in_pages() -> None:
    given = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"turn {n}"} for n in range(7)]
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        response = await client.responses.create(model=MODEL, input=given)  # pyright: ignore
        newest = [item async for item in client.responses.input_items.list(response.id, limit=3)]
        oldest = await client.responses.input_items.list(response.id, limit=5, order="asc")
    texts = [item.content[0].text for item in newest]  # pyright: ignore
    assert texts == [f"turn {n}" for n in reversed(range(7))]
    assert [item.content[0].text for item in oldest.data] == [f"turn {n}" for n in range(5)]  # pyright: ignore
    assert oldest.has_more


async def test_a_response_that_is_cut_is_incomplete() -> None:
    async with running_gateway(make_worker()) as gateway, gateway.openai() as client:
        cut = await client.responses.create(model=MODEL, input="x", max_output_tokens=3)
        body = {"model": MODEL, "input": "x", "max_output_tokens": 3, "stream": True}
        last = events_of(await gateway.client.post("/v1/responses", json=body))[-1]
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert (cut.output[0].status, cut.output_text) == ("incomplete", "The router")  # pyright: ignore
    assert (last["type"], last["response"]["output"][0]["status"]) == ("response.incomplete", "incomplete")


async def test_items_of_earlier_responses_can_be_referred_to_as_if_they_were_sent_again() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        first = await client.responses.create(model=MODEL, input="x")
        asked = (await client.responses.input_items.list(first.id)).data
        references: Any = [{"type": "item_reference", "id": item.id} for item in (*asked, *first.output)]
        question: Any = {"role": "user", "content": "And then?"}
        by_reference = await client.responses.create(model=MODEL, input=[*references, question])
        await client.responses.create(model=MODEL, input=question["content"], previous_response_id=first.id)
        kept = (await client.responses.input_items.list(by_reference.id, order="asc")).data
        await client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError, match="there is no item"):
            await client.responses.create(model=MODEL, input=references)
    assert worker.requests[1].token_ids == worker.requests[2].token_ids
    assert [item.type for item in kept] == ["message"] * 3


async def test_log_probabilities_stand_at_the_text() -> None:
    async with running_gateway(make_worker(batch=3)) as gateway, gateway.openai() as client:
        options: dict[str, Any] = {"top_logprobs": 2, "include": ["message.output_text.logprobs"]}
        whole = await client.responses.create(model=MODEL, input="x", **options)
        body = {"model": MODEL, "input": "x", "stream": True, **options}
        events = events_of(await gateway.client.post("/v1/responses", json=body))
    entries = whole.output[0].content[0].logprobs  # pyright: ignore
    assert b"".join(bytes(entry.bytes) for entry in entries[:-1]).decode() == TEXT
    assert len(entries) == len(answer())
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    (done,) = [event["logprobs"] for event in events if event["type"] == "response.output_text.done"]
    assert done == [entry.to_dict() for entry in entries]
    assert [entry for delta in deltas for entry in delta][: len(done) - 1] == done[:-1]


async def test_a_failure_in_mid_stream_is_told_as_an_event() -> None:
    worker = make_worker(script=breaking_after(4, error(WorkerError.CODE_INVALID, "can't go on")))
    async with running_gateway(worker) as gateway, gateway.openai() as client:
        body = {"model": MODEL, "input": "x", "stream": True}
        events = events_of(await gateway.client.post("/v1/responses", json=body))
        last = events[-1]
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(last["response"]["id"])
        with pytest.raises(openai.BadRequestError, match="can't go on"):
            await client.responses.create(model=MODEL, input="x")
    assert last["type"] == "response.failed"
    assert "can't go on" in last["response"]["error"]["message"]
    assert TEXT.startswith(last["response"]["output"][0]["content"][0]["text"])
    assert [event["type"] for event in events[-4:-1]] == ENDS


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "computer_call"}]}, "input[0].type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].id"),
    ({"input": [{"type": "item_reference", "id": ["x"]}]}, "input[0].id"),
    ({"input": [{"type": "item_reference", "id": "msg_" + "0" * 24 + "o0"}]}, "input[0].id"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"background": True, "store": False}, "background"),
    ({"conversation": "c"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"metadata": {"a": 5}}, "metadata"),
    ({"metadata": {"a" * 65: "b"}}, "metadata"),
    ({"previous_response_id": "resp_x"}, "previous_response_id"),
    ({"text": {"format": {"type": "yaml"}}}, "text.format"),
]


@pytest.fixture(scope="module")
async def client() -> Any:
    async with running_gateway(make_worker()) as gateway:
        yield gateway.client


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:50])
async def test_what_cannot_be_done_is_refused_by_name(client: httpx.AsyncClient, fields: Any, param: str) -> None:
    answer = await client.post("/v1/responses", json={"model": MODEL, "input": "x"} | fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)
