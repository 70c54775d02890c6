"""Answers of every model family with what they say, and the maker of those that can be derived from the formats.

`python -m tests.support.answer_streams` writes `tests/data/answers/FAMILY.jsonl`: lines of `text` and `events`, an
event being `["content", text]`, `["reasoning", text]` or `["call", name, arguments, id?]`. `inside` says that the
prompt ended with the tag that begins the reasoning. Formats are written down here once more, as models write them and
not as our parsers read them; `handwritten_answers` has what no rule makes.
"""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.support.handwritten_answers import ANSWERS

DIRECTORY = Path(__file__).parents[1] / "data" / "answers"

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}},
    "search": {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "limit": {"type": "integer"},
            "filters": {"type": "object"},
            "tags": {"type": "array"},
            "exact": {"type": "boolean"},
            "cursor": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "score": {"type": "number"},
            "any": {},
        },
    },
    "get_time": {"type": "object", "properties": {}},
    "write_file": {"type": "object", "properties": {"path": {"type": "string"}, "text": {"type": "string"}}},
    "mcp.files-list_2": {"type": "object"},
}

Call = tuple[str, str]
"""Name, and arguments as the model writes them."""
Render = Callable[[str, list[Call], str], str]
"""Text before, calls, text after."""


def _dumps(arguments: Any, **options: Any) -> str:
    return json.dumps(arguments, **({"ensure_ascii": False} | options))


PARIS = _dumps({"city": "Paris"})
NASTY = [
    {"text": 'say "hi"'},
    {"text": "C:\\temp\\new"},
    {"text": "line one\nline two\ttabbed\r\n"},
    {"text": "</tool_call> [TOOL_CALLS] <tool_call> <|python_tag|> </function"},
    {"text": "{\"name\": \"get_time\", \"arguments\": {}}"},
    {"text": "}}}]]{{{[["},
    {"text": "Grüße, 你好 🙂🚀 e\u0301"},
    {"text": "\u2028\u2029\u00a0\ufeff\u0001\u007f"},
    {"text": ""},
    {"text": " leading and trailing "},
    {"text": "a < b && c > d"},
    {"": {"": [[], {}, [{}]]}},
    {"a": {"b": {"c": {"d": {"e": [1, [2, [3, [4]]]]}}}}},
    {"n": -1.5e-300, "m": 12345678901234567890, "t": True, "f": False, "z": None},
    {"list": ["a", 1, None, {"x": "]"}], "braces": "}{"},
    {"quote": "\\\"", "slash": "\\\\", "end": "\\"},
]  # fmt: skip


def common() -> Iterator[tuple[str, list[Call], str]]:
    """Before, calls, after: what all families can say."""
    yield "", [], "Plain text, nothing else."
    yield "", [], "Two\n\nparagraphs, a { brace, a [ bracket and a < b."
    yield "", [], '```json\n{"answer": 42}\n```\nThat is it. '
    yield "", [("get_weather", PARIS)], ""
    yield "", [("get_time", "{}")], ""
    yield "I will look that up.", [("get_weather", PARIS)], ""
    yield "Grüße 🙂", [("search", _dumps({"query": "你好", "limit": 3}))], ""
    yield "", [("get_weather", PARIS), ("get_weather", _dumps({"city": "Rome"}))], ""
    yield "Three at once:", [("get_time", "{}"), ("get_weather", PARIS), ("search", _dumps({"query": "x"}))], ""
    yield "", [("get_weather", _dumps({"city": f"City {n}"})) for n in range(6)], ""
    yield "", [("mcp.files-list_2", _dumps({"path": "/tmp"}))], ""
    yield "", [("search", _dumps({"query": "x", "filters": {"a": [1, {"b": None}]}}, indent=2))], ""
    yield "", [("search", _dumps({"query": "x", "tags": ["a", "b"]}, separators=(",", ":")))], ""
    yield "", [("search", _dumps({"query": "Grüße 🙂"}, ensure_ascii=True))], ""
    yield "", [("search", '{ "query" :\t"x" ,\n "limit":  3 }')], ""
    yield "", [("write_file", _dumps({"path": "a.py", "text": "def f():\n    return {\n" + "x = 1\n" * 40 + "}"}))], ""
    for arguments in NASTY:
        yield "", [("write_file", _dumps(arguments))], ""
    yield "Both:", [("write_file", _dumps(NASTY[3])), ("write_file", _dumps(NASTY[5]))], ""


def hermes(before: str, calls: list[Call], after: str) -> str:
    blocks = [f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>' for name, arguments in calls]
    return "\n".join([*([before] if before else []), *blocks]) + after


def mistral_list(before: str, calls: list[Call], after: str) -> str:
    each = [f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in calls]
    return before + (f"[TOOL_CALLS] [{', '.join(each)}]" if calls else "") + after


def mistral_named(before: str, calls: list[Call], after: str) -> str:
    return before + "".join([f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls]) + after


def deepseek_v3(before: str, calls: list[Call], after: str) -> str:
    each = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    ]
    return before + (f"<｜tool▁calls▁begin｜>{chr(10).join(each)}<｜tool▁calls▁end｜>" if calls else "") + after


def deepseek_v31(before: str, calls: list[Call], after: str) -> str:
    each = [f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>" for name, arguments in calls]
    return before + (f"<｜tool▁calls▁begin｜>{''.join(each)}<｜tool▁calls▁end｜>" if calls else "") + after


def llama3(before: str, calls: list[Call], after: str) -> str:
    each = [f'{{"name": "{name}", "parameters": {arguments}}}' for name, arguments in calls]
    tag = "<|python_tag|>" if before and calls else ""
    return before + tag + "; ".join(each) + after


def harmony(before: str, calls: list[Call], after: str) -> str:
    messages = [f"<|channel|>commentary<|message|>{before}<|end|>"] if before else []
    for name, arguments in calls:
        header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        messages.append(f"{header}{arguments}<|call|>")
    messages += [f"<|channel|>final<|message|>{after}"] if after else []
    return "<|start|>assistant".join(messages)


def qwen_coder(name: str, arguments: dict[str, Any]) -> str:
    values = [
        f"<parameter={key}>\n{_dumps(value) if isinstance(value, (dict, list)) else value}\n</parameter>\n"
        for key, value in arguments.items()
    ]
    return f"<tool_call>\n<function={name}>\n{''.join(values)}</function>\n</tool_call>"


def made_qwen_coder() -> Iterator[dict[str, Any]]:
    """Values are written as they are, so what they are is told by the schema."""
    calls: list[list[tuple[str, dict[str, Any]]]] = [
        [("get_time", {})],
        [("get_weather", {"city": "Paris", "unit": "c"})],
        [("get_weather", {"city": "7"}), ("get_weather", {"city": "null"}), ("get_time", {})],
        [("search", {"query": "x", "limit": 3, "exact": True, "score": 0.25, "cursor": None})],
        [("search", {"query": "true", "limit": -1, "exact": False, "score": 1, "cursor": "7"})],
        [("search", {"filters": {"a": [1, {"b": None}]}, "tags": ["a", "</function>"]})],
        [("search", {"any": 7}), ("search", {"any": [1]}), ("search", {"any": "words"})],
        [("mcp.files-list_2", {"path": "/tmp", "depth": "3"})],
        *[[("write_file", {"path": "a", **arguments})] for arguments in NASTY if list(arguments) == ["text"]],
        [("write_file", {"path": "a.py", "text": "\n\ndef f():\n    return 1\n\n"})],
        [("write_file", {"path": "a.html", "text": "<p class='x'>\n</p>\n<parameter>"})],
    ]
    for each in calls:
        for before, after in (("", ""), ("Let me see.", ""), ("Grüße 🙂\n<", "That is all.")):
            text = "\n".join([*([before] if before else []), *(qwen_coder(*call) for call in each)])
            events = [["call", name, _dumps(arguments)] for name, arguments in each]
            yield {"text": f"{text}\n{after}", "events": [*_content(before), *events, *_content(after)]}


def made_reasoning() -> Iterator[dict[str, Any]]:
    """`<think>` in front of Hermes' answers."""
    thoughts = ("Short.", "Let me think.\n\nThe user wants <b>two</b> things: 1 < 2 🙂", '{"name": "get_time"}')
    for thought in thoughts:
        for case in (*islice(made("hermes"), 12), {"text": "", "events": []}):
            events = [["reasoning", thought], *case["events"]]
            yield {"text": f"<think>\n{thought}\n</think>\n\n{case['text']}", "events": events}
            yield {"text": f"{thought}</think>{case['text']}", "events": events, "inside": True}
    yield {"text": "<think>\nCut of", "events": [["reasoning", "Cut of"]]}
    yield {"text": "<think>\nCut off</thi", "events": [["reasoning", "Cut off</thi"]]}
    yield {"text": "Cut off\n", "events": [["reasoning", "Cut off\n"]], "inside": True}
    yield {"text": "<think>\n\n</think>\n\nHi", "events": [["content", "Hi"]]}
    yield {"text": "</think>Hi", "events": [["content", "Hi"]], "inside": True}
    yield {"text": "<think>twice</think>Hi", "events": [["reasoning", "twice"], ["content", "Hi"]], "inside": True}
    yield {"text": "Hi <think>no</think>", "events": [["content", "Hi <think>no</think>"]]}
    yield {"text": "  <thin", "events": [["content", "  <thin"]]}
    yield {"text": "\n<think>a</think>b</think>", "events": [["reasoning", "a"], ["content", "b</think>"]]}


RENDERS: dict[str, tuple[Render, ...]] = {
    "hermes": (hermes,),
    "mistral": (mistral_list, mistral_named),
    "deepseek": (deepseek_v3, deepseek_v31),
    "llama3": (llama3,),
    "harmony": (harmony,),
}


def made(family: str) -> Iterator[dict[str, Any]]:
    if family == "qwen3_coder":
        yield from made_qwen_coder()
    if family == "think":
        yield from made_reasoning()
    for render in RENDERS.get(family, ()):
        for before, calls, after in common():
            text = render(before, calls, after)
            events = [*_content(before), *(["call", *call] for call in calls), *_content(after)]
            yield {"text": text, "events": events}
            if len(calls) == 1 and before:
                yield from _cut_off(family, text, before, *calls[0])


def _cut_off(family: str, text: str, before: str, name: str, arguments: str) -> Iterator[dict[str, Any]]:
    """The answer ended early: inside the arguments, after them, and before they begin."""
    start = text.index(arguments, len(before))
    for size in (1, len(arguments) // 2, len(arguments) - 1, len(arguments)):
        yield {"text": text[: start + size], "events": [*_content(before), ["call", name, arguments[:size]]]}
    if family != "harmony":
        for size in (start, start - 3, len(before) + 2):
            yield {"text": text[:size], "events": _content(text[:size])}


def _content(text: str) -> list[list[str]]:
    return [["content", text]] if text else []


def recorded(family: str) -> list[dict[str, Any]]:
    """All of a family's answers, the made ones first."""
    lines = (DIRECTORY / f"{family}.jsonl").read_text().rstrip("\n").split("\n")
    return [json.loads(line) for line in lines]


def main() -> None:
    for family in (*RENDERS, "qwen3_coder", "think"):
        own = [{"text": text, "events": events} for text, *events in ANSWERS.get(family, ())]
        lines = {json.dumps(case, ensure_ascii=False): None for case in [*made(family), *own]}
        (DIRECTORY / f"{family}.jsonl").write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
