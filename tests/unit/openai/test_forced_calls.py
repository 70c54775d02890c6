"""Answers that must call: what their grammars let through is what the families' parsers read as calls."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from armature.grammars.notation import LIMITS, GrammarError, check, source_of
from armature.openai.forced_calls import calls_or_answer, forced_calls, strict_calls
from armature.openai.parsers.families import TOOL_FAMILIES, AnswerFormat
from armature.openai.tools import ToolUse, tools_of
from armature.openai.vocabulary import Vocabulary
from armature.v1.common_pb2 import Grammar, TextChoice
from tests.support.answer_streams import deepseek_v3, deepseek_v31, harmony, hermes, llama3, mistral_list, mistral_named
from tests.unit.openai.parsers.test_families import compact, merged

SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string"},
        "limit": {"type": "integer"},
        "unit": {"type": "string", "enum": ["c"]},
    },
    "required": ["query"],
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "search", "parameters": SEARCH}},
    {"type": "function", "function": {"name": "get_time"}},
]
SPECIALS = sorted(set().union(*(family.markers for family in TOOL_FAMILIES.values())) | {"[THINK]", "[/THINK]"})
PLAIN = ("<tool_call>", "</tool_call>")
QUERY, TIME = ("search", '{"query": "x é", "limit": 3}'), ("get_time", "{}")


def make_tokenizer(specials: list[str]) -> Tokenizer:
    """A token for every byte, and these special ones."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in [*specials, "<|eos|>"]])
    return tokenizer


TOKENIZER = make_tokenizer([name for name in SPECIALS if name not in PLAIN])
VOCABULARY = Vocabulary(TOKENIZER, TOKENIZER.to_str().encode())
FOLLOWED = LLTokenizer(
    TOKENIZER.to_str(), n_vocab=TOKENIZER.get_vocab_size(), eos_token=TOKENIZER.token_to_id("<|eos|>")
)


def lets_through(
    tools: ToolUse, form: AnswerFormat, template: str, text: str, prompt: str = "", answer: Grammar | None = None
) -> bool:
    """Whether the grammar takes the whole text, and would end there."""
    reading = form.reading(tools.parameters, prompt)
    assert reading is not None
    if answer is not None:
        grammar = calls_or_answer(tools, reading, VOCABULARY, template, answer)
    elif tools.must_call:
        grammar = forced_calls(tools, reading, VOCABULARY, template)
    else:
        grammar = strict_calls(tools, reading, VOCABULARY, template)
    assert grammar is not None
    check(grammar)
    matcher = LLMatcher(FOLLOWED, source_of(grammar), log_level=0, limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    token_ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def qwen(before: str, calls: list[Any], after: str) -> str:
    blocks = []
    for name, arguments in calls:
        values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in json.loads(arguments).items())
        blocks.append(f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>")
    return "\n".join(blocks)


FAMILIES: list[tuple[str, Any, str]] = [
    ("hermes", hermes, ""),
    ("llama3", llama3, ""),
    ("mistral", mistral_list, "[TOOL_CALLS]"),
    ("mistral", mistral_named, "[TOOL_CALLS] [ARGS]"),
    ("deepseek", deepseek_v3, "```json"),
    ("deepseek", deepseek_v31, ""),
    ("harmony", harmony, ""),
    ("qwen3_coder", qwen, ""),
]


@pytest.mark.parametrize(("family", "render", "template"), FAMILIES)
def test_required_calls_are_what_the_family_writes_and_reads(family: str, render: Any, template: str) -> None:
    form = AnswerFormat(family, "harmony" if family == "harmony" else "none")
    required = tools_of(TOOLS, "required", None)
    several = () if family == "harmony" else ([TIME, QUERY],)
    for calls in ([QUERY], [TIME], *several):
        text = render("", calls, "").removesuffix("<|call|>")
        assert lets_through(required, form, template, text), text
        reading = form.reading(required.parameters, "")
        assert reading is not None
        parser = reading.parser()
        assert compact(merged([*parser.feed(text), *parser.finish()])) == [["call", *call] for call in calls]
    for wrong in ("hello", "", render("", [("other", "{}")], ""), render("", [("search", '{"limit": 3}')], "")):
        assert not lets_through(required, form, template, wrong.removesuffix("<|call|>")), wrong


def test_a_named_function_is_called_once_and_a_call_that_is_not_parallel_too() -> None:
    form = AnswerFormat("hermes")
    named = tools_of(TOOLS, {"type": "function", "function": {"name": "search"}}, None)
    assert lets_through(named, form, "", hermes("", [QUERY], ""))
    assert not lets_through(named, form, "", hermes("", [TIME], ""))
    assert not lets_through(named, form, "", hermes("", [QUERY, QUERY], ""))
    single = tools_of(TOOLS, "required", False)
    assert lets_through(single, form, "", hermes("", [TIME], ""))
    assert not lets_through(single, form, "", hermes("", [TIME, TIME], ""))


def test_arguments_keep_to_their_schema() -> None:
    form, required = AnswerFormat("hermes"), tools_of(TOOLS, "required", None)
    for arguments in ('{"query": 3}', '{"query": "x", "other": 1}', '{"query": "x", "unit": "f"}', "{}"):
        assert not lets_through(required, form, "", hermes("", [("search", arguments)], "")), arguments
    free: Any = [{"type": "function", "function": {"name": "f", "parameters": {"additionalProperties": True}}}]
    assert lets_through(tools_of(free, "required", None), form, "", hermes("", [("f", '{"a": [1]}')], ""))


def test_the_model_may_think_first() -> None:
    required, calls = tools_of(TOOLS, "required", None), hermes("", [TIME], "")
    thinking = AnswerFormat("hermes", "think")
    assert lets_through(required, thinking, "", f"<think>\nHm <b> {{\n</think>\n\n{calls}")
    assert lets_through(required, thinking, "", calls)
    assert lets_through(required, thinking, "", f"Hm.\n</think>\n\n{calls}", prompt="<think>\n")
    assert not lets_through(required, thinking, "", calls, prompt="<think>\n")
    special = AnswerFormat("mistral", "mistral")
    assert lets_through(required, special, "[ARGS]", f"[THINK]Hm.[/THINK]{mistral_named('', [TIME], '')}")
    channels = AnswerFormat("harmony", "harmony")
    analysis = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    assert lets_through(required, channels, "", analysis + harmony("", [TIME], "").removesuffix("<|call|>"))


@pytest.mark.parametrize(("family", "render", "template"), [one for one in FAMILIES if one[0] != "llama3"])
def test_a_model_that_may_call_does_or_answers_as_it_must(family: str, render: Any, template: str) -> None:
    form = AnswerFormat(family, "harmony" if family == "harmony" else "none")
    head = "<|channel|>final<|message|>" if family == "harmony" else ""
    for answer, right, wrong in (
        (Grammar(json_schema=json.dumps({"properties": {"a": {"type": "integer"}}})), '{"a": 1}', '{"a": "1"}'),
        (Grammar(json_schema="true"), "[1, 2]", "[1"),
        (Grammar(json_object=True), "{}", "[]"),
        (Grammar(regex="a/b|c\\/d"), "c/d", "a"),
        (Grammar(choice=TextChoice(texts=['"yes"', "no\n"])), '"yes"', "yes"),
    ):
        for text in (head + right, render("", [QUERY], "").removesuffix("<|call|>")):
            assert lets_through(tools_of(TOOLS, "auto", None), form, template, text, answer=answer), text
        for text in (head + wrong, render("", [("other", "{}")], "").removesuffix("<|call|>"), "hello"):
            assert not lets_through(tools_of(TOOLS, "auto", None), form, template, text, answer=answer), text


def test_an_answer_that_calls_can_not_be_told_from_leaves_no_room_for_them() -> None:
    may = tools_of(TOOLS, "auto", None)
    for family, answer in (("hermes", Grammar(ebnf='start: "x"')), ("llama3", Grammar(json_object=True))):
        reading = AnswerFormat(family).reading(may.parameters, "")
        assert reading is not None
        assert calls_or_answer(may, reading, VOCABULARY, "", answer) is None


def test_a_strict_function_with_a_schema_that_cannot_be_enforced_is_refused() -> None:

    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}
    for strict in (False, True):
        function = {"name": "f", "parameters": schema, "strict": strict}
        required = tools_of([{"type": "function", "function": function}], "required", None)
        if strict:
            with pytest.raises(GrammarError):
                lets_through(required, AnswerFormat("hermes"), "", "x")
        else:
            assert lets_through(required, AnswerFormat("hermes"), "", hermes("", [("f", '{"a": []}')], ""))


STRICT: Any = [
    {"type": "function", "function": {"name": "search", "parameters": SEARCH, "strict": True}},
    {"type": "function", "function": {"name": "get_time"}},
]
MARKED = [one for one in FAMILIES if one[0] in ("hermes", "mistral", "deepseek")]


@pytest.mark.parametrize(("family", "render", "template"), MARKED)
def test_strict_functions_are_called_as_declared_by_a_model_that_may_say_anything(
    family: str, render: Any, template: str
) -> None:
    form, may = AnswerFormat(family), tools_of(STRICT, "auto", None)
    for text in ("", "Hello <b>.", render("", [QUERY], ""), render("Let me see. ", [TIME, QUERY], "")):
        assert lets_through(may, form, template, text), text
    assert lets_through(may, form, template, render("", [("get_time", '{"any":  [1]}')], "")), "not strict"
    for arguments in ('{"query": 3}', '{"query": "x", "other": 1}', "{}"):
        assert not lets_through(may, form, template, render("Well. ", [("search", arguments)], "")), arguments
    assert not lets_through(may, form, template, render("Well. ", [("other", "{}")], ""))


def test_a_model_thinks_and_talks_before_it_calls_strictly() -> None:
    may, calls = tools_of(STRICT, "auto", None), hermes("Well. ", [QUERY], "")
    for prompt, thought in (("", "<think>\nHm.\n</think>\n\n"), ("<think>\n", "Hm.\n</think>\n\n"), ("", "")):
        assert lets_through(may, AnswerFormat("hermes", "think"), "", thought + calls, prompt=prompt), thought
        assert lets_through(may, AnswerFormat("hermes", "think"), "", thought + "No.", prompt=prompt), thought


def test_calls_are_free_where_nothing_is_strict_or_no_marker_tells_them_from_text() -> None:
    for family, tools in (("hermes", TOOLS), ("llama3", STRICT), ("harmony", STRICT), ("qwen3_coder", STRICT)):
        may = tools_of(tools, "auto", None)
        reading = AnswerFormat(family, "harmony" if family == "harmony" else "none").reading(may.parameters, "")
        assert reading is not None
        assert strict_calls(may, reading, VOCABULARY, "") is None
