"""Hints and sessions: our own words and those of others mean the same, and mistakes are refused by name."""

import json
from typing import Any

import pytest

from armature.openai.asks import chat_ask, completion_asks
from armature.openai.errors import ApiError
from armature.openai.rules import Ask
from armature.openai.schema import BodyDecoder, ChatBody, CompletionBody
from armature.routing.hints import NO_HINTS, Hints

CHAT = BodyDecoder(ChatBody)
COMPLETION = BodyDecoder(CompletionBody)


def chat(header: str = "", **fields: Any) -> Ask:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return chat_ask(CHAT.decode(json.dumps(body).encode()), header)


def completion(header: str = "", **fields: Any) -> Ask:
    return completion_asks(COMPLETION.decode(json.dumps({"model": "m", "prompt": "hi"} | fields).encode()), header)[0]


def test_a_request_that_says_nothing_hints_nothing() -> None:
    assert chat().hints is completion().hints is NO_HINTS
    assert chat(armature={"hints": {}}, nvext={"agent_hints": {}}).hints == NO_HINTS
    assert chat().session_id == ""


@pytest.mark.parametrize("ask", [chat, completion])
def test_every_hint_arrives(ask: Any) -> None:
    said = {
        "priority": -3,
        "latency_sensitivity": 0,
        "ttft_target_s": 1.5,
        "expected_output_tokens": 700,
        "cache_ttl_s": 300,
        "speculative_prefill": True,
    }
    assert ask(armature={"hints": said}).hints == Hints(**said)


def test_the_words_of_others_mean_the_same() -> None:
    nvext = {
        "agent_hints": {"priority": 5, "osl": 512, "latency_sensitivity": 1.5, "speculative_prefill": True},
        "cache_control": {"type": "ephemeral", "ttl": "1h"},
    }
    assert chat(nvext=nvext).hints == Hints(
        priority=5,
        expected_output_tokens=512,
        latency_sensitivity=2.5,
        speculative_prefill=True,
        cache_ttl_s=3600.0,
    )
    assert chat(nvext={"agent_hints": {"latency_sensitivity": 0.0}}).hints == NO_HINTS
    assert chat(nvext={"cache_control": {"type": "ephemeral"}}).hints.cache_ttl_s == 300.0


def test_the_most_particular_word_names_the_session() -> None:
    own, control = {"session_id": "own"}, {"session_control": {"session_id": "control"}}
    assert chat(armature=own, nvext=control, prompt_cache_key="key", header="header").session_id == "own"
    assert chat(nvext=control, prompt_cache_key="key", header="header").session_id == "control"
    assert completion(prompt_cache_key="key", header="header").session_id == "key"
    assert completion(header="header").session_id == "header"


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"armature": {"hints": {"priority": 11}}}, "armature.hints.priority", "invalid_value"),
    ({"armature": {"hints": {"priority": 1.5}}}, "armature.hints.priority", "invalid_type"),
    ({"armature": {"hints": {"latency_sensitivity": -1}}}, "armature.hints.latency_sensitivity", "invalid_value"),
    ({"armature": {"hints": {"ttft_target_s": "1s"}}}, "armature.hints.ttft_target_s", "invalid_type"),
    ({"armature": {"hints": {"ttft_target_s": -1}}}, "armature.hints.ttft_target_s", "invalid_value"),
    ({"armature": {"hints": {"expected_output_tokens": -1}}}, "armature.hints.expected_output_tokens", "invalid_value"),
    ({"armature": {"hints": {"cache_ttl_s": 1e9}}}, "armature.hints.cache_ttl_s", "invalid_value"),
    ({"armature": {"hints": {"speculative_prefill": 1}}}, "armature.hints.speculative_prefill", "invalid_type"),
    ({"armature": {"hints": {"prio": 1}}}, "armature.hints.prio", "unknown_parameter"),
    ({"armature": {"hint": {}}}, "armature.hint", "unknown_parameter"),
    ({"armature": {"session_id": "x" * 257}}, "armature.session_id", "invalid_value"),
    ({"armature": {"session_id": "é" * 129}}, "armature.session_id", "invalid_value"),
    ({"armature": {"session_id": 5}}, "armature.session_id", "invalid_type"),
    ({"armature": []}, "armature", "invalid_type"),
    ({"prompt_cache_key": "x" * 257}, "prompt_cache_key", "invalid_value"),
    ({"nvext": {"agent_hints": {"priority": 99}}}, "nvext.agent_hints.priority", "invalid_value"),
    ({"nvext": {"agent_hints": {"osl": -1}}}, "nvext.agent_hints.osl", "invalid_value"),
    (
        {"nvext": {"agent_hints": {"latency_sensitivity": 9.5}}},
        "nvext.agent_hints.latency_sensitivity",
        "invalid_value",
    ),
    ({"nvext": {"agent_hints": {"strict_priority": 1}}}, "nvext.agent_hints.strict_priority", "unknown_parameter"),
    ({"nvext": {"backend_instance_id": 1}}, "nvext.backend_instance_id", "unknown_parameter"),
    ({"nvext": {"cache_control": {"type": "persistent"}}}, "nvext.cache_control.type", "invalid_value"),
    ({"nvext": {"cache_control": {"type": "ephemeral", "ttl": "2h"}}}, "nvext.cache_control.ttl", "invalid_value"),
    ({"nvext": {"session_control": {}}}, "nvext.session_control.session_id", "missing_required_parameter"),
    (
        {"armature": {"hints": {"priority": 1}}, "nvext": {"agent_hints": {"osl": 1}}},
        "nvext.agent_hints.osl",
        "invalid_value",
    ),
]


@pytest.mark.parametrize("ask", [chat, completion])
@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=str)
def test_a_wrong_hint_is_refused_by_its_field(ask: Any, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        ask(**fields)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)
    assert param in caught.value.message


def test_a_header_that_is_too_long_is_refused_by_its_name() -> None:
    with pytest.raises(ApiError, match="x-armature-session-id"):
        chat(header="x" * 300)
