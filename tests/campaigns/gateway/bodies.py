"""Bodies for every route that takes one: valid ones, and what becomes of them when values are exchanged."""

import json
import random
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

MODEL = "demo"
_TOOL = {"name": "look_up", "parameters": {"type": "object", "properties": {"word": {"type": "string"}}}}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
_USER = {"role": "user", "content": "Where is the block?"}
_TALK = [{"role": "system", "content": "Be brief."}, _USER, {"role": "assistant", "content": "Here."}, _USER]
_CALLED = [
    _USER,
    {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "look_up", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "found"}]},
]
_SAMPLED = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "repetition_penalty": 1.1, "seed": 7, "stop": ["zz"], "stop_token_ids": [5], "logit_bias": {"9": -3.5},
    "min_tokens": 2,
}  # fmt: skip
_OURS = {
    "armature": {"include_info": True, "session_id": "s", "hints": {"priority": 3, "ttft_target_s": 5.0}},
    "prompt_cache_key": "k",
}
_NVEXT = {"nvext": {"agent_hints": {"osl": 9, "priority": 1}, "cache_control": {"type": "ephemeral", "ttl": "1h"}}}

VALID: Mapping[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": (
        {"messages": _TALK, "max_tokens": 8, **_SAMPLED},
        {"messages": [_USER], "max_completion_tokens": 6, "stream": True, "stream_options": {"include_usage": True}},
        {"messages": [_USER], "max_tokens": 5, "n": 3, "stream": True, "logprobs": True, "top_logprobs": 2, **_OURS},
        {"messages": _CALLED, "max_tokens": 6, "tools": [{"type": "function", "function": _TOOL}]},
        {"messages": [_USER], "max_tokens": 9, "response_format": {"type": "json_object"}, "stream": True},
        {
            "messages": [_USER], "max_tokens": 9,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}},
        },
        {"messages": [_USER], "max_tokens": 4, "structured_outputs": {"regex": "[a-f]+"}, **_NVEXT},
    ),
    "/v1/completions": (
        {"prompt": "The block is", "max_tokens": 8, **_SAMPLED},
        {"prompt": [300, 301, 302], "max_tokens": 5, "stream": True, "echo": True},
        {"prompt": "x", "max_tokens": 4, "n": 2, "best_of": 3, "logprobs": 3},
        {"prompt": "x", "max_tokens": 4, "guided_choice": ["yes", "no"], "stream": True, **_OURS},
    ),
    "/v1/responses": (
        {"input": "Where?", "max_output_tokens": 7, "instructions": "Be brief.", "metadata": {"a": "b"}},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}], "max_output_tokens": 5,
         "stream": True, "store": False, "text": {"format": {"type": "json_object"}}},
        {"input": [{"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
                   {"type": "function_call_output", "call_id": "c", "output": "y"}],
         "tools": [{"type": "function", **_TOOL}], "max_output_tokens": 5, "stream": True},
        {"input": "x", "previous_response_id": "resp_0", "max_output_tokens": 4},
    ),
    "/v1/messages": (
        {"messages": [_USER], "max_tokens": 8, "system": "Be brief.", "stop_sequences": ["zz"], "top_k": 9},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "max_tokens": 5, "stream": True,
         "thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"messages": [_USER, {"role": "assistant", "content": [
            {"type": "tool_use", "id": "t", "name": "look_up", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "y"}]}],
         "max_tokens": 5, "tools": [{"name": "look_up", "input_schema": _TOOL["parameters"]}]},
    ),
    "/v1/messages/count_tokens": ({"messages": [_USER], "system": [{"type": "text", "text": "Be brief."}]},),
    "/v1/embeddings": (
        {"input": ["one", "two"], "encoding_format": "base64"},
        {"input": [300, 301], "dimensions": None},
    ),
    "/tokenize": ({"prompt": "some words", "return_token_strs": True}, {"messages": _TALK}),
    "/detokenize": ({"tokens": [300, 301, 302]},),
}  # fmt: skip

_FAMILIAR = ("schema", "type", "stream", "n", "tools", "input", "content")
_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308,
    1e-320, float("nan"), float("inf"), "", "x", "\x00", "\ud800", "\u202e", "😀" * 50, "<|im_end|>", "{{", "{% for %}",
    "../..", "a" * 5000, MODEL, [], {}, [[]], [None], {"": None}, {"type": "text"}, [1, "x"], {"a": {"a": {"a": 1}}},
)  # fmt: skip


def mutated(rng: random.Random, route: str) -> dict[str, Any]:
    """A valid body in which up to four things are wrong."""
    body: dict[str, Any] = json.loads(json.dumps({"model": MODEL, **rng.choice(VALID[route])}))
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        places = [*_places(body)]
        if places:
            _change(rng, *rng.choice(places))
    if rng.random() < 0.1:
        other = rng.choice(VALID[rng.choice([*VALID])])
        body.update({key: other[key] for key in rng.sample([*other], min(2, len(other)))})
    return body


def nested(rng: random.Random) -> bytes:
    """JSON that is deeper than anybody means it, complete or not."""
    depth = rng.choice((50, 900, 1100, 20_000, 200_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('{"messages":[', "]}")))
    inner = opening * depth + ("1" if opening != "[" else "")
    field = rng.choice(("tools", "messages", "metadata", "guided_json", "chat_template_kwargs", "nothing"))
    end = closing * depth if rng.random() < 0.7 else ""
    return f'{{"model":"{MODEL}","{field}":{inner}{end}}}'.encode()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes cut out, put in, turned over; never UTF-8 any more, or hardly JSON."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(5):
            case 0:
                del made[at : at + rng.randint(1, 20)]
            case 1:
                made[at:at] = rng.randbytes(rng.randint(1, 8))
            case 2:
                made[at:at] = rng.choice(
                    (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\\ud800", b"\\u0000", b"\xf0\x9f")
                )
            case 3:
                made[at:at] = rng.choice((b"1e999999", b"-", b"0" * 400, b"9" * 5000, b"NaN", b"//", b'"', b"{", b"\n"))
            case _:
                if made:
                    made[at % len(made)] ^= 1 << rng.randrange(8)
    return bytes(made)


def encoded(value: Any) -> bytes:
    """As JSON, or what Python takes for it; lone surrogates stay escapes."""
    return json.dumps(value).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value, with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _change(rng: random.Random, holder: Any, key: Any) -> None:
    match rng.randrange(6):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, list):
            holder[:] = holder * rng.choice((0, 2, 40))
        case 2 if isinstance(holder[key], str):
            holder[key] = holder[key] + rng.choice(("\x00", "\ud83d", " " * 3000, "}", "\u0301" * 40))
        case 3 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * rng.choice((-1, 3, 10**6, 10**30))
        case 4 if isinstance(holder, dict):
            holder[rng.choice((f"{key}x", *_FAMILIAR))] = deepcopy(rng.choice(_ODD))
        case _:
            holder[key] = deepcopy(rng.choice(_ODD))
