"""The `openai` client and curl against a cell of one prefill and two decode workers, as `make serve` starts it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import openai
import pytest

from tests.support.cell import Cell, running_cell
from tests.support.dashboards import exposed, metrics_asked_for

QUESTION = [{"role": "user", "content": "What does os.path.join do? " + "Explain it with care. " * 30}]


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    flags = {"router": ("--disaggregation", "always")}
    folder = tmp_path_factory.mktemp("openai")
    async with running_cell(folder, etcd_address, flags=flags, kv_offload=("--host-bytes", str(1 << 24))) as cell:
        yield cell


@pytest.fixture(scope="module")
async def client(cell: Cell) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{cell.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


async def test_chat_streaming_and_not_say_the_same_and_prove_the_split(client: openai.AsyncOpenAI, cell: Cell) -> None:
    options = {"model": "demo", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    extra = {"armature": {"include_info": True}}
    whole = await client.chat.completions.create(**options, extra_body=extra)  # pyright: ignore
    assert whole.usage is not None and whole.usage.completion_tokens > 0
    info = whole.model_extra["armature"]
    assert info["prefill_worker"] == cell.services["prefill-worker-0"].member_id
    assert cell.by_id(info["decode_worker"]).name.startswith("decode-worker")
    assert info["transport"] == "nixl"
    assert info["transferred_bytes"] > 0
    assert info["transferred_tokens"] == (whole.usage.prompt_tokens - 1) // 16 * 16

    text, finish, usage = "", None, None
    stream = await client.chat.completions.create(  # pyright: ignore
        **options, stream=True, stream_options={"include_usage": True}
    )
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0


async def test_completions_and_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["demo"]
    done = await client.completions.create(model="demo", prompt="Return the", max_tokens=8, logprobs=2, seed=1)
    again = await client.completions.create(model="demo", prompt="Return the", max_tokens=8, logprobs=2, seed=1)
    assert done.choices[0].text == again.choices[0].text
    assert len(done.choices[0].logprobs.tokens) == done.usage.completion_tokens


async def test_an_unknown_model_is_the_clients_not_found_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="nobody", messages=QUESTION)  # pyright: ignore
    assert caught.value.code == "model_not_found"


async def test_curl_gets_json_and_events(cell: Cell) -> None:
    async def curl(body: dict[str, object]) -> str:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-N", "--max-time", "60", f"{cell.url}/v1/chat/completions",
            "-H", "content-type: application/json", "-d", json.dumps(body), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return out.decode()

    body: dict[str, object] = {"model": "demo", "messages": QUESTION, "max_tokens": 10, "temperature": 0}
    answer = json.loads(await curl(body))
    events = [line[6:] for line in (await curl({**body, "stream": True})).splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == answer["choices"][0]["message"]["content"]


SCHEMA = {
    "type": "object",
    "properties": {
        "module": {"type": "string", "enum": ["os", "json", "math"]},
        "summary": {"type": "string", "maxLength": 60},
        "versions": {"type": "array", "items": {"type": "integer", "minimum": 2, "maximum": 3}, "maxItems": 3},
    },
    "required": ["module", "summary", "versions"],
    "additionalProperties": False,
}


async def test_two_streamed_answers_match_their_schema_and_are_those_of_the_whole_ones(
    client: openai.AsyncOpenAI,
) -> None:
    options: Any = {
        "model": "demo", "messages": QUESTION, "max_tokens": 200, "n": 2, "seed": 4,
        "response_format": {"type": "json_schema", "json_schema": {"name": "doc", "schema": SCHEMA, "strict": True}},
    }  # fmt: skip
    whole = await client.chat.completions.create(**options)
    texts, reasons = {0: "", 1: ""}, {}
    async for chunk in await client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert reasons == {0: "stop", 1: "stop"}
    assert [choice.message.content for choice in whole.choices] == [texts[0], texts[1]]
    assert texts[0] != texts[1]
    for text in texts.values():
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    ("extra", "expression"),
    [
        ({"guided_regex": r"[A-Z]{3}-\d{4}"}, r"[A-Z]{3}-\d{4}"),
        ({"guided_choice": ["yes", "no", "maybe"]}, "yes|no|maybe"),
        ({"structured_outputs": {"grammar": 'root ::= "a" "b"? "c"'}}, "ab?c"),
    ],
    ids=["regex", "choice", "grammar"],
)
async def test_answers_keep_to_other_grammars_too(
    client: openai.AsyncOpenAI, extra: dict[str, Any], expression: str
) -> None:
    done = await client.completions.create(model="demo", prompt="It is", max_tokens=30, extra_body=extra)
    assert re.fullmatch(expression, done.choices[0].text)
    assert done.choices[0].finish_reason == "stop"


async def test_a_running_cell_exposes_whatever_the_dashboards_ask_for(cell: Cell) -> None:
    pages = await asyncio.gather(*(service.scrape() for service in cell.services.values()))
    of_planners = {name for name in metrics_asked_for() if name.startswith("armature_planner_")}
    assert metrics_asked_for() - of_planners <= set[str]().union(*map(exposed, pages))
