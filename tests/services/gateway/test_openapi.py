"""The OpenAPI document is true: of the routes, of what they take, and of every answer."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from armature.openai.openapi.shapes import ServingInfo
from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.openai.tenancy.admin import Admin
from armature.openai.tenancy.key_file import KeyFile
from armature.openai.tenancy.keys import digest_of
from armature.openai.tenancy.usage import UsageMeter
from armature.v1 import common_pb2
from tests.services.gateway.console import Watched
from tests.services.gateway.fakes import FakeRouter, FakeWorker, listening
from tests.services.gateway.harness import MODEL, make_worker, running_core
from tests.services.gateway.test_tool_calls import SAID, WEATHER, saying
from tests.support.conformity import ADMIN_KEY, KEY, conformity, key_book

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Weather in Paris?"}]}
TOOL = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
FLAT_TOOL = {"type": "function", **WEATHER["function"]}
INFO = {"armature": {"include_info": True}}
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, **INFO, "tools": [WEATHER], "n": 2}),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}),
    ("/v1/completions", {"model": MODEL, "prompt": "x", "logprobs": 2, **INFO}),
    ("/v1/responses", {"model": MODEL, "input": "x", "tools": [FLAT_TOOL], **INFO}),
    ("/v1/responses", {"model": MODEL, "input": "x", "include": ["message.output_text.logprobs"], "top_logprobs": 1}),
    ("/v1/messages", {**CHAT, "max_tokens": 999, "tools": [TOOL], "thinking": {"type": "adaptive"}, **INFO}),
]


@asynccontextmanager
async def serving(folder: Path, worker: FakeWorker) -> AsyncIterator[str]:
    """A gateway with keys and administration; its URL."""
    (folder / "keys.yaml").write_text(key_book())
    router, store, meter = FakeRouter([worker]), KeyFile(folder / "keys.yaml"), UsageMeter("gateway-a", "", None)
    async with listening(worker, router), running_core([worker], [router]) as (core, tasks):
        core.doorkeeper.table, core.doorkeeper.admin_digest = store.read(), digest_of(ADMIN_KEY)
        core.on_end.append(meter.ended)
        console = Watched(core, tasks, [worker.member, router.member]).console
        routes = [*Admin(core.doorkeeper, meter, store).routes(), *console.routes()]
        http = HttpServer(make_rest_app(core, ResponseStore(None, "test"), routes), "127.0.0.1", 0)
        running = asyncio.create_task(http.run())
        await http.started()
        yield f"http://127.0.0.1:{http.port}"
        console.feed.close()
        http.stop(now=True)
        await running


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        serving(tmp_path, saying(SAID)) as url,
        httpx.AsyncClient(base_url=url, timeout=15.0, headers=headers) as client,
    ):
        yield client


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


def events_of(text: str) -> Iterator[Any]:
    for data in re.findall(r"^data: (.*)$", text, re.MULTILINE):
        if data != "[DONE]":
            yield json.loads(data)


async def test_every_answer_and_every_event_is_as_the_document_says(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    seen: set[str] = set()
    for path, body in ASKED:
        contents = document["paths"][path]["post"]["responses"]["200"]["content"]
        whole = await client.post(path, json=body)
        assert whole.status_code == 200, whole.text
        validator(document, contents["application/json"]["schema"]).validate(whole.json())
        usage = {"stream_options": {"include_usage": True}} if "completions" in path else {}
        stream = await client.post(path, json={**body, "stream": True, **usage})
        assert stream.status_code == 200, stream.text
        event = validator(document, contents["text/event-stream"]["x-itemSchema"])
        for told in events_of(stream.text):
            event.validate(told)
            seen.add(told.get("type", told.get("object")))
    assert {"response.reasoning_text.delta", "response.function_call_arguments.done", "content_block_delta"} <= seen


async def test_the_document_describes_all_routes_and_needs_nothing_else(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json", headers={"authorization": ""})).json()
    assert document["openapi"].startswith("3.1")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    references = re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', json.dumps(document))
    assert set(references) <= set(document["components"]["schemas"])
    # Whatever is asked for at a path that is not described, there is nothing; at one that is, never.
    for path, operations in document["paths"].items():
        methods = {method.upper() for method in operations}
        refused = await client.request("PATCH", re.sub(r"{\w+}", "x", path), headers=admin_if_needed(path))
        assert (refused.status_code, set(refused.headers["allow"].split(", ")) - {"HEAD"}) == (405, methods), path


def admin_if_needed(path: str) -> dict[str, str]:
    return {"authorization": f"Bearer {ADMIN_KEY if path.startswith('/admin') else KEY}"}


async def test_serving_info_is_described_field_by_field() -> None:
    assert ServingInfo.__struct_fields__ == tuple(field.name for field in common_pb2.ServingInfo.DESCRIPTOR.fields)


class Fetched(HTMLParser):
    """What a page makes a browser do."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links |= {value or "" for name, value in attrs if name in ("href", "src", "action")}
        self.ids |= {f"#{value}" for name, value in attrs if name == "id"}


async def test_the_page_fetches_nothing_and_shows_every_operation(client: httpx.AsyncClient) -> None:
    document, answer = (await client.get("/openapi.json")).json(), await client.get("/docs")
    page = Fetched()
    page.feed(answer.text)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.tags.isdisjoint({"script", "img", "link", "iframe", "form"})
    assert "http" not in answer.text.replace("HTTP", "")
    assert page.links <= page.ids | {"/openapi.json"}
    assert answer.text.count("<summary><b>") == sum(map(len, document["paths"].values()))


async def test_schemathesis_finds_nothing_that_is_not_as_described(tmp_path: Path) -> None:
    """In short; `make fuzz-gateway` looks longer."""
    async with serving(tmp_path, make_worker(batch=5)) as url:
        report = await conformity(url, MODEL, phases="fuzzing,stateful", examples=3, seed=7, timeout_s=100)
    assert report.is_conform, report.text
