"""Output items and events of a response: what they say does not depend on how the answer came."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from armature.openai.answers import Usage
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.openai.responses.answer import ResponseAnswer
from armature.openai.responses.schema import ResponseBody
from tests.unit.openai.answer_events import answers, cut

USAGE = Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=2)


def made(batches: list[list[AnswerEvent]], *, stream: bool, reason: str = "stop") -> tuple[dict[str, Any], list[Any]]:
    answer = ResponseAnswer("0f", ResponseBody(model="m", input="x", stream=stream), created_s=1)
    told = b""
    for batch in batches:
        answer.feed(batch)
        told += answer.take_events()
    answer.finish(reason, USAGE, now_s=2)
    told += answer.take_events()
    lines = [line[6:] for line in told.decode().split("\n") if line.startswith("data: ")]
    return json.loads(answer.to_json()), [json.loads(line) for line in lines]


def items_by_hand(said: list[AnswerEvent]) -> list[tuple[Any, ...]]:
    items: list[list[Any]] = []
    for event in said:
        match event:
            case Content(text):
                items.append(["message", text])
            case Reasoning(text):
                items.append(["reasoning", text])
            case ToolCallStart(_, name, call_id):
                items.append(["function_call", name, call_id, ""])
            case ToolCallArguments(_, text):
                items[-1][-1] += text
    return [tuple(item) for item in items] or [("message", "")]


def shown(item: dict[str, Any]) -> tuple[Any, ...]:
    if item["type"] == "function_call":
        return item["type"], item["name"], item["call_id"], item["arguments"]
    (part,) = item["content"]
    return item["type"], part["text"]


@given(answers().flatmap(lambda said: st.tuples(st.just(said), cut(said))))
def test_items_and_events_tell_the_same_however_the_answer_is_cut(
    answer: tuple[list[AnswerEvent], list[list[AnswerEvent]]],
) -> None:
    said, batches = answer
    whole, nothing = made([said], stream=False)
    streamed, events = made(batches, stream=True)
    assert nothing == []
    assert streamed == whole
    assert [shown(item) for item in whole["output"]] == items_by_hand(said)
    assert {item["status"] for item in whole["output"]} == {"completed"}

    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == whole
    assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == whole["output"]
    for index, item in enumerate(whole["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert (own[0]["type"], own[-1]["type"]) == ("response.output_item.added", "response.output_item.done")
        assert "".join(event["delta"] for event in own if event["type"].endswith(".delta")) == shown(item)[-1]
        assert {event["item_id"] for event in own if "item_id" in event} == {item["id"]}


def test_only_the_last_item_of_an_answer_that_is_cut_off_is_incomplete() -> None:
    whole, events = made([[Reasoning("hm"), Content("so")]], stream=True, reason="length")
    assert [item["status"] for item in whole["output"]] == ["completed", "incomplete"]
    assert (whole["status"], events[-1]["type"]) == ("incomplete", "response.incomplete")
    assert whole["completed_at"] is None
