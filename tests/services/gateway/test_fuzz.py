"""Whatever a client sends, the answer is an answer or an error in shape: never a 5xx, never a hang."""

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armature.openai.anthropic.schema import Block, MessagesBody
from armature.openai.responses.schema import ResponseBody
from armature.openai.schema import ChatBody, CompletionBody
from tests.services.gateway.harness import MODEL, Gateway, make_worker, running_gateway
from tests.support.eventually import eventually

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 600), st.floats(allow_nan=False), st.text(max_size=8),
    st.sampled_from([MODEL, "user", "text", "none", 1e308, -1e-308, 2**31, 2**32, 2**63, 2**64, "\x00", "<|im_end|>"]),
)  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
CONTENT = SCALARS | st.lists(st.fixed_dictionaries({"type": st.just("text") | SCALARS, "text": SCALARS}), max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "x"]) | SCALARS,
            "content": CONTENT,
        }
    ),
    max_size=3,
)
PROMPT = st.text(max_size=20) | st.lists(st.integers(-1, 520), max_size=5) | JSON
FIELDS = sorted({*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__} - {"model", "messages", "prompt"})
EXTRAS = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3)
PLAUSIBLE = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(0, 40),
        "temperature": st.floats(0, 2.1),
        "top_p": st.floats(0, 1),
        "stop": st.text(max_size=3) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
        "stream": st.booleans(),
        "logit_bias": st.dictionaries(st.integers(0, 520).map(str), st.floats(-100, 100), max_size=2),
        "logprobs": st.booleans() | st.integers(0, 6),
        "min_tokens": st.integers(0, 9),
        "stop_token_ids": st.lists(st.integers(0, 520), max_size=3),
        "seed": st.integers(-(2**64), 2**64),
    },
)
VALID_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text(max_size=20)}),
    min_size=1,
    max_size=3,
)
VALID_PROMPT = st.text(min_size=1, max_size=20) | st.lists(st.integers(0, 511), min_size=1, max_size=5)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Mostly right, so that what is wrong gets as far as it can."""
    wrong = draw(st.sampled_from(["", "", "", "model", "messages", "fields"]))
    body: dict[str, Any] = {
        "model": draw(JSON) if wrong == "model" else MODEL,
        "messages": draw(MESSAGES | JSON if wrong == "messages" else VALID_MESSAGES),
        "prompt": draw(PROMPT if wrong == "messages" else VALID_PROMPT),
    }
    return body | draw(PLAUSIBLE) | (draw(EXTRAS) if wrong == "fields" else {})


ITEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "x", []]) | JSON,
            "role": st.sampled_from(["user", "assistant", "developer", "x"]) | SCALARS,
            "content": st.text(max_size=9)
            | st.lists(st.fixed_dictionaries({"type": st.just("input_text"), "text": SCALARS}), max_size=2)
            | JSON,
            "call_id": st.just("c") | SCALARS,
            "name": st.just("f") | SCALARS,
            "arguments": st.just("{}") | SCALARS,
            "output": st.text(max_size=9) | JSON,
            "id": SCALARS,
        },
    ),
    max_size=4,
)
RESPONSE_FIELDS = sorted({*ResponseBody.__struct_fields__} - {"model", "input"})


@st.composite
def response_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """As `bodies`, for the Responses API."""
    wrong = draw(st.sampled_from(["", "", "items", "input", "fields"]))
    given = {"items": ITEMS, "input": JSON}.get(wrong, st.text(min_size=1, max_size=9))
    extras = st.dictionaries(st.sampled_from(RESPONSE_FIELDS), JSON, max_size=3)
    body = {"model": MODEL, "input": draw(given)} | draw(PLAUSIBLE)
    return body | (draw(extras) if wrong == "fields" else {})


BLOCKS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "tool_use", "tool_result", "thinking", "image"]) | SCALARS},
        optional={name: SCALARS | JSON for name in Block.__struct_fields__ if name != "type"},
    ),
    max_size=3,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text(max_size=9) | BLOCKS}
    ),
    max_size=3,
)
MESSAGE_FIELDS = sorted({*MessagesBody.__struct_fields__} - {"model", "messages", "max_tokens"})


@st.composite
def message_bodies(draw: st.DrawFn) -> dict[str, Any]:
    """As `bodies`, for the Messages API."""
    wrong = draw(st.sampled_from(["", "", "turns", "messages", "fields"]))
    turns = {"turns": TURNS, "messages": JSON}.get(wrong, st.just([{"role": "user", "content": "x"}]))
    extras = st.dictionaries(st.sampled_from(MESSAGE_FIELDS), JSON, max_size=3)
    body = {"model": MODEL, "max_tokens": 9, "messages": draw(turns)} | draw(PLAUSIBLE)
    return body | (draw(extras) if wrong == "fields" else {})


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """Valid bodies with bytes cut out, put in or turned over, and bytes that never were one."""
    data = bytearray(json.dumps(draw(bodies())).encode())
    start = draw(st.integers(0, len(data)))
    data[start : start + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
    return bytes(data)


async def check(gateway: Gateway, route: str, content: bytes) -> None:
    async with asyncio.timeout(5):
        response = await gateway.client.post(route, content=content)
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, response.text
        words = {"message", "type"} if route == "/v1/messages" else {"message", "type", "param", "code"}
        assert set(response.json()["error"]) == words
    elif response.headers["content-type"].startswith("text/event-stream"):
        end = "data: [DONE]\n\n" if "completions" in route else "}\n\n"
        assert response.text.endswith(end), response.text
    elif route == "/v1/responses":
        assert response.json()["status"] in ("completed", "incomplete")
    elif route == "/v1/messages":
        assert response.json()["stop_reason"] in ("end_turn", "max_tokens", "stop_sequence")
    else:
        assert response.json()["choices"][0]["finish_reason"] in ("stop", "length")
    await eventually(lambda: gateway.core.inflight == 0)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)


async def fuzz(route: str, contents: st.SearchStrategy[bytes]) -> None:
    """Run the examples against one gateway: they come from a thread, since hypothesis knows no running loop."""
    loop = asyncio.get_running_loop()
    async with running_gateway(make_worker(batch=5)) as gateway:

        @FUZZ
        @given(contents)
        def examples(content: bytes) -> None:
            asyncio.run_coroutine_threadsafe(check(gateway, route, content), loop).result()

        await asyncio.to_thread(examples)


async def test_no_chat_body_is_a_server_error() -> None:
    await fuzz("/v1/chat/completions", bodies().map(json.dumps).map(str.encode))


async def test_no_completion_body_is_a_server_error() -> None:
    await fuzz("/v1/completions", bodies().map(json.dumps).map(str.encode))


async def test_no_response_body_is_a_server_error() -> None:
    await fuzz("/v1/responses", response_bodies().map(json.dumps).map(str.encode))


async def test_no_message_body_is_a_server_error() -> None:
    await fuzz("/v1/messages", message_bodies().map(json.dumps).map(str.encode))


async def test_no_broken_body_is_a_server_error() -> None:
    await fuzz("/v1/chat/completions", broken())
