"""Content blocks and events of a message: what they say does not depend on how the answer came."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from armature.openai.answers import Usage
from armature.openai.anthropic.answer import MessageAnswer
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from tests.unit.openai.answer_events import answers, cut

USAGE = Usage(prompt_tokens=5, completion_tokens=7, cached_tokens=2)


def made(
    batches: list[list[AnswerEvent]], *, stream: bool, shows_thinking: bool = True, stop: str | None = None
) -> tuple[dict[str, Any], list[Any]]:
    answer = MessageAnswer("0f", "m", is_streamed=stream, shows_thinking=shows_thinking)
    answer.begin(USAGE)
    told = answer.take_events()
    for batch in batches:
        answer.feed(batch)
        told += answer.take_events()
    answer.finish("stop", stop, USAGE)
    told += answer.take_events()
    lines = [line[6:] for line in told.decode().split("\n") if line.startswith("data: ")]
    return json.loads(answer.to_json()), [json.loads(line) for line in lines]


def blocks_by_hand(said: list[AnswerEvent]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for event in said:
        match event:
            case Content(text):
                blocks.append({"type": "text", "text": text})
            case Reasoning(text):
                blocks.append({"type": "thinking", "thinking": text, "signature": ""})
            case ToolCallStart(_, name, call_id):
                blocks.append({"type": "tool_use", "id": call_id, "name": name, "input": {}})
            case ToolCallArguments(_, text):
                blocks[-1]["input"] = json.loads(text)
    return blocks


@given(answers().flatmap(lambda said: st.tuples(st.just(said), cut(said))))
def test_blocks_and_events_tell_the_same_however_the_answer_is_cut(
    answer: tuple[list[AnswerEvent], list[list[AnswerEvent]]],
) -> None:
    said, batches = answer
    whole, nothing = made([said], stream=False)
    streamed, events = made(batches, stream=True)
    assert nothing == []
    assert streamed == whole
    assert whole["content"] == blocks_by_hand(said)
    has_calls = any(isinstance(event, ToolCallStart) for event in said)
    assert whole["stop_reason"] == ("tool_use" if has_calls else "end_turn")
    for index, block in enumerate(whole["content"]):
        first, *deltas, last = [event for event in events if event.get("index") == index]
        assert (first["type"], last["type"]) == ("content_block_start", "content_block_stop")
        text = "".join(next(v for k, v in delta["delta"].items() if k != "type") for delta in deltas)
        if block["type"] == "tool_use":
            assert json.loads(text or "{}") == block["input"]
        else:
            assert text == block[block["type"]]


def test_thinking_that_nobody_asked_for_is_left_out() -> None:
    said: list[AnswerEvent] = [Reasoning("hm"), Content("so")]
    whole, events = made([said], stream=True, shows_thinking=False)
    assert whole["content"] == [{"type": "text", "text": "so"}]
    assert [event["index"] for event in events if event["type"] == "content_block_start"] == [0]


def test_a_stop_sequence_is_told() -> None:
    whole, events = made([[Content("so")]], stream=True, stop="END")
    assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "END")
    assert events[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
