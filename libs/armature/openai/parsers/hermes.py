"""Hermes, Qwen 2.5 and Qwen 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, once for each call."""

from armature.openai.parsers.calls import Calls, Tools, read_calls
from armature.openai.parsers.events import Content
from armature.openai.parsers.reader import Reader, Script

START, END = "<tool_call>", "</tool_call>"


def hermes(reader: Reader, tools: Tools) -> Script[None]:
    calls = Calls(reader)
    while (yield from reader.pass_until((START,), Content)):
        yield from reader.skip_space()
        if (yield from read_calls(reader, calls, END)):
            yield from reader.drop_space()
        else:
            reader.give_up()
