"""Every family's parser against recorded answers, and against itself under every way of splitting a text."""

from dataclasses import fields
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.engines.host.settings import WorkerSettings
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart, merged
from armature.openai.parsers.families import (
    REASONING_PARSERS,
    TOOL_FAMILIES,
    TOOL_PARSERS,
    AnswerFormat,
    Reading,
    chosen,
    detect,
)
from tests.support.answer_streams import TOOLS, recorded

FORMATS = {
    **{name: AnswerFormat(name) for name in TOOL_FAMILIES},
    "harmony": AnswerFormat("harmony", "harmony"),
    "think": AnswerFormat("hermes", "think"),
}


def parse(family: str, pieces: list[str], *, inside: bool = False) -> list[AnswerEvent]:
    parser = Reading(FORMATS[family], TOOLS, is_inside=inside).parser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merged([*events, *parser.finish()])


def compact(events: list[AnswerEvent]) -> list[list[Any]]:
    """Events as the recordings have them."""
    out: list[list[Any]] = []
    for event in events:
        match event:
            case Content(text):
                out.append(["content", text])
            case Reasoning(text):
                out.append(["reasoning", text])
            case ToolCallStart(index, name, call_id):
                assert index == sum(other[0] == "call" for other in out)
                out.append(["call", name, "", *([call_id] if call_id else [])])
            case ToolCallArguments(index, text):
                assert out[-1][0] == "call" and index == sum(other[0] == "call" for other in out) - 1
                out[-1][2] += text
    return out


@pytest.mark.parametrize("family", FORMATS)
def test_recorded_answers_say_what_they_say(family: str) -> None:
    answers = recorded(family)
    assert len(answers) >= 50
    for answer in answers:
        events = parse(family, [answer["text"]], inside=answer.get("inside", False))
        assert compact(events) == answer["events"], answer["text"]


@pytest.mark.parametrize("family", FORMATS)
def test_recorded_answers_may_be_split_at_every_character(family: str) -> None:
    for answer in recorded(family):
        text, inside = answer["text"], answer.get("inside", False)
        whole = parse(family, [text], inside=inside)
        assert parse(family, list(text), inside=inside) == whole, text
        step = 1 if len(text) < 120 else 7
        for cut in range(1, len(text), step):
            assert parse(family, [text[:cut], text[cut:]], inside=inside) == whole, (text[:cut], text[cut:])


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<｜tool▁calls▁begin｜>", "<|python_tag|>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```json", "```"),
    *("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>", " to=functions.f", "analysis", "commentary"),
    *("<think>", "</think>", "<function=search>", "</function>", "<parameter=query>", "<parameter=limit>"),
    *("</parameter>", "get_time", "function", '{"name": "get_time", "arguments": {"a": 1}}', '{"name": "'),
    *('"arguments": {', '"parameters": ', '", ', "null", "{", "}", "[", "]", '"', "\\", "\\u00e9", ":", ",", ";"),
    *(" ", "\n", "<", "a", "🙂"),
]


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=14), data=st.data())
def test_any_text_gives_the_same_events_however_it_is_split(family: str, parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    inside = data.draw(st.booleans())
    whole = parse(family, [text], inside=inside)
    assert parse(family, pieces, inside=inside) == whole
    assert parse(family, list(text), inside=inside) == whole
    compact(whole)


@pytest.mark.parametrize("family", ["hermes", "mistral", "deepseek", "llama3"])
@given(parts=st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_an_answer_without_calls_loses_no_character(family: str, parts: list[str]) -> None:
    text = "".join(parts)
    events = parse(family, [text])
    if not any(isinstance(event, ToolCallStart) for event in events):
        assert events == ([Content(text)] if text else [])


def test_arguments_come_as_they_are_made() -> None:
    parser = Reading(AnswerFormat("hermes"), TOOLS, is_inside=False).parser()
    seen = [parser.feed(piece) for piece in ('<tool_call>{"name": "search", ', '"arguments": {"query"', ': "x')]
    assert seen == [
        [],
        [ToolCallStart(0, "search"), ToolCallArguments(0, '{"query"')],
        [ToolCallArguments(0, ': "x')],
    ]


def test_text_is_held_back_only_while_it_may_begin_a_call() -> None:
    parser = Reading(AnswerFormat("hermes"), TOOLS, is_inside=False).parser()
    assert parser.feed("a <tool") == [Content("a")]
    assert parser.feed("box") == [Content(" <toolbox")]


TEMPLATES = [
    ("{{ messages }}", "none", "none"),
    ("<tool_call>\\n{...}\\n</tool_call>", "hermes", "none"),
    ("<tool_call> ... <think> ... </think>", "hermes", "think"),
    ("<tool_call>\\n<function=...", "qwen3_coder", "none"),
    ("<tool_call>name\\n<arg_key>", "none", "none"),
    ('ipython ... {"name": ..., \'"parameters": \'', "llama3", "none"),
    ("[TOOL_CALLS] ... [THINK]", "mistral", "mistral"),
    ("<｜tool▁call▁begin｜> ... </think>", "deepseek", "think"),
    ("<|start|>assistant<|channel|>analysis", "harmony", "harmony"),
]


@pytest.mark.parametrize(("template", "tools", "reasoning"), TEMPLATES)
def test_the_chat_template_tells_the_family(template: str, tools: str, reasoning: str) -> None:
    assert detect(template) == AnswerFormat(tools, reasoning)


def test_a_worker_may_name_the_parsers_or_leave_them_open() -> None:
    assert chosen("", "auto", "<tool_call></think>") == AnswerFormat("hermes", "think")
    assert chosen("mistral", "none", "<tool_call></think>") == AnswerFormat("mistral", "none")
    assert chosen("auto", "harmony", "<tool_call>") == AnswerFormat("harmony", "harmony")
    with pytest.raises(ValueError, match="hermes"):
        chosen("hermse", "auto", "")
    with pytest.raises(ValueError, match="think"):
        chosen("auto", "deep", "")


def test_nothing_is_parsed_where_nothing_is_to_be_found() -> None:
    assert AnswerFormat("hermes").reading({}, "prompt") is None
    assert AnswerFormat("none").reading(TOOLS, "prompt") is None
    reading = AnswerFormat("hermes", "think").reading({}, "<think>\n")
    assert reading is not None and reading.is_inside
    assert compact(merged([*reading.parser().feed("so</think>a <tool_call>{}"), *reading.parser().finish()])) == [
        ["reasoning", "so"], ["content", "a <tool_call>{}"],
    ]  # fmt: skip
    assert reading.markers == {"<think>", "</think>"}


def test_workers_can_be_told_of_every_parser() -> None:
    kinds = {field.name: field.type for field in fields(WorkerSettings)}
    assert get_args(kinds["tool_call_parser"]) == TOOL_PARSERS
    assert get_args(kinds["reasoning_parser"]) == REASONING_PARSERS
