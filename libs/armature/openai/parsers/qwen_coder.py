"""Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter>...</function></tool_call>`.

Values are written without quotes: the function's schema says which are text. One newline on each side of a value is not
part of it. The outer tags may be missing.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from armature.openai.parsers.calls import MAX_NAME, Calls, Tools
from armature.openai.parsers.events import Content
from armature.openai.parsers.reader import Emit, Reader, Script

OUTER_START, OUTER_END = "<tool_call>", "</tool_call>"
START, END = "<function=", "</function>"
VALUE_START, VALUE_END = "<parameter=", "</parameter>"
MAX_TYPED_VALUE = 1 << 20
"""Characters of a value that is read as a whole because it is not simply text."""

_NAME_ENDS = "<>\n"
_VALUE_ENDS = ("\n" + VALUE_END, VALUE_END)
_TEXT = frozenset(("string",))
# As the model's template writes them when it shows earlier calls.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_KINDS: dict[type, str] = {
    dict: "object", list: "array", str: "string", int: "integer", float: "number", bool: "boolean",
    type(None): "null",
}  # fmt: skip


def qwen_coder(reader: Reader, tools: Tools) -> Script[None]:
    calls = Calls(reader)
    while marker := (yield from reader.pass_until((OUTER_START, START), Content)):
        if marker == OUTER_START:
            yield from reader.skip_space()
        if (marker == START or (yield from reader.accept(START))) and (yield from _call(reader, calls, tools)):
            yield from reader.skip_space()
            yield from reader.accept(OUTER_END, or_cut_off=True)
            yield from reader.drop_space()
        else:
            reader.give_up()


def _call(reader: Reader, calls: Calls, tools: Tools) -> Script[bool]:
    name = yield from reader.run_of(_NAME_ENDS, MAX_NAME)
    if not name or not (yield from reader.accept(">")):
        return False
    emit, schemas = calls.start(name), tools.get(name, {}).get("properties")
    reader.tell(emit("{"))
    yield from reader.drop_space()
    separator = ""
    while (yield from reader.accept(VALUE_START, or_cut_off=True)):
        key = yield from reader.run_of(_NAME_ENDS, MAX_NAME)
        if not key or not (yield from reader.accept(">")):
            break
        reader.settle()
        reader.tell(emit(f"{separator}{_as_json(key)}: "))
        separator = ", "
        yield from _value(reader, emit, _types(schemas.get(key) if isinstance(schemas, Mapping) else None))
        yield from reader.drop_space()
    if (yield from reader.peek()):
        reader.rewind()
        reader.tell(emit("}"))
        yield from reader.accept(END, or_cut_off=True)
    return True


def _value(reader: Reader, emit: Emit, types: frozenset[str]) -> Script[None]:
    yield from reader.accept("\n")
    reader.settle()
    if types != _TEXT:
        value = yield from reader.read_until(VALUE_END, MAX_TYPED_VALUE)
        if value is not None:
            return reader.tell(emit(_typed(value.removesuffix("\n"), types)))
        if not (yield from reader.peek()):
            return reader.give_up(emit)  # cut off
        reader.rewind()
    reader.tell(emit('"'))
    if (yield from reader.pass_until(_VALUE_ENDS, lambda text: emit(_as_json(text)[1:-1]), space="")):
        reader.tell(emit('"'))


def _types(schema: Any) -> frozenset[str]:
    """The JSON types that a value may have; empty: any. A value that nothing is known of is text."""
    if not isinstance(schema, Mapping):
        return _TEXT
    declared = cast(Mapping[str, Any], schema)
    kinds = declared.get("type")
    if isinstance(kinds, str):
        return frozenset((kinds,))
    if isinstance(kinds, list):
        return frozenset(kind for kind in cast(list[Any], kinds) if isinstance(kind, str))
    choices = declared.get("anyOf") or declared.get("oneOf")
    if not isinstance(choices, list):
        return frozenset()
    each = [_types(choice) for choice in cast(list[Any], choices)]
    return frozenset().union(*each) if all(each) else frozenset()


def _typed(value: str, types: frozenset[str]) -> str:
    """The value as JSON: as what it is if it may be that, else as text."""
    value = _PYTHON_WORDS.get(value.strip(), value)
    try:
        kind = _KINDS[type(json.loads(value, parse_constant=_refuse))]
    except (ValueError, RecursionError):
        return _as_json(value)
    is_allowed = "string" not in types or kind in types or (kind == "integer" and "number" in types)
    return value.strip() if is_allowed else _as_json(value)


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
