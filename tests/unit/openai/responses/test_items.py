"""Items of a conversation as the messages of a chat, and where the names of errors come from."""

from typing import Any

import pytest

from armature.openai.errors import ApiError, invalid
from armature.openai.renaming import renamed
from armature.openai.responses.asks import NAMES, response_ask
from armature.openai.responses.items import chat_messages, input_items
from armature.openai.responses.schema import ResponseBody
from armature.openai.rules import ChatPrompt


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": arguments}


def said(text: str, kind: str = "output_text") -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": kind, "text": text}]}


REASONING = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
RESULT = {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "done"}]}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "developer", "content": "be"}], [("developer", "be", (), None)]),
        ([said("x"), said("y")], [("assistant", "x", (), None), ("assistant", "y", (), None)]),
        ([said("x"), call("a"), call("b")], [("assistant", "x", ("a", "b"), None)]),
        ([call("a"), call("b"), RESULT], [("assistant", "", ("a", "b"), None), ("tool", "done", (), None)]),
        ([REASONING, said("x"), call("a")], [("assistant", "x", ("a",), "hm")]),
        ([REASONING, call("a"), RESULT], [("assistant", "", ("a",), "hm"), ("tool", "done", (), None)]),
        ([said("x"), REASONING, call("a")], [("assistant", "x", (), None), ("assistant", "", ("a",), "hm")]),
        ([REASONING, {"role": "user", "content": "x"}], [("user", "x", (), None)]),
        ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}], [("assistant", "no", (), None)]),
    ],
)
def test_what_the_assistant_did_in_one_go_is_one_message(items: list[Any], messages: list[Any]) -> None:
    made = chat_messages(items)
    shown = [(m.role, m.content, tuple(c.id for c in m.tool_calls or ()), m.reasoning_content) for m in made]
    assert shown == messages


def test_items_get_a_type_and_an_id_unless_they_have_one() -> None:
    items = input_items([{"role": "user", "content": "x"}, {**RESULT, "id": "mine"}, call("a")], "0f")
    assert [item["id"] for item in items] == ["msg_0fi0", "mine", "fc_0fi2"]
    assert items[0]["content"] == [{"type": "input_text", "text": "x"}]
    assert input_items(items, "1e") == items  # a stored item is an input item


def test_instructions_come_first_and_only_in_this_turn() -> None:
    body = ResponseBody(model="m", instructions="Be brief.", max_output_tokens=7)
    ask = response_ask(body, input_items("x", "0f"), "talk")
    assert isinstance(ask.prompt, ChatPrompt)
    assert [message["content"] for message in ask.prompt.messages] == ["Be brief.", "x"]
    assert (ask.max_tokens, ask.session_id, ask.prompt_field) == (7, "talk", "input")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format", "text.format"),
        ("tools[3].function.parameters.type", "tools[3].parameters.type"),
        ("tool_choice", "tool_choice"),
        ("messages[2].content", "input"),
        ("max_completion_tokens", "max_output_tokens"),
        ("temperature", "temperature"),
    ],
)
def test_errors_name_the_fields_of_the_surface(theirs: str, ours: str) -> None:
    error = renamed(invalid(theirs, "must be better"), NAMES)
    assert (error.param, error.message) == (ours, f"Invalid '{ours}': must be better")
    assert (error.status, error.code) == (400, "invalid_value")


def test_a_call_whose_arguments_were_cut_off_stays_in_the_conversation() -> None:
    items = input_items([call("a", '{"x'), RESULT], "0f")
    prompt = response_ask(ResponseBody(model="m"), items).prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages[0]["tool_calls"][0]["function"]["arguments"] == '{"x'


@pytest.mark.parametrize("kind", ["picture", 3, [], {}, None])
def test_an_item_of_no_known_type_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(ApiError) as caught:
        input_items([{"type": "message", "role": "user", "content": "x"}, {"type": kind}], "0f")
    assert (caught.value.status, caught.value.param) == (400, "input[1].type")
