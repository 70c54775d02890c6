"""Harmony (gpt-oss): messages with headers, `<|channel|>analysis<|message|>...<|end|><|start|>assistant...`.

A message that is addressed to a function is a call, whatever its channel; else the channel `analysis` is reasoning and
all others are content. The first header's beginning stands in the prompt. What stands in headers is not text.
"""

import re

from armature.openai.parsers.calls import Calls, Tools
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning
from armature.openai.parsers.reader import Reader, Script

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"

MARKERS = frozenset((START, CHANNEL, "<|constrain|>", MESSAGE, END, CALL, RETURN))

MAX_HEADER = 512
_HEADER_STARTS = (START, CHANNEL, MESSAGE)
_BODY_ENDS = (END, CALL, RETURN, START, CHANNEL)
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"(?:^|\s|\|>)to=([^\s<]+)")


def harmony(reader: Reader, tools: Tools) -> Script[None]:
    calls = Calls(reader)
    yield from reader.skip_space()
    marker = "to=" if (yield from reader.accept("to=")) else ""
    if not marker:
        reader.rewind()
        marker = yield from reader.pass_until(_HEADER_STARTS, Content)
    while marker:
        header = "" if marker == MESSAGE else (yield from reader.read_until(MESSAGE, MAX_HEADER))
        if header is not None:
            yield from reader.drop_space()
            marker = yield from _body(reader, calls, marker + header)
        elif (yield from reader.peek()):
            reader.give_up()
            marker = ""
        else:
            return  # cut off in a header
        if marker not in (START, CHANNEL):
            reader.settle()
            marker = yield from reader.pass_until(_HEADER_STARTS, Content)


def _body(reader: Reader, calls: Calls, header: str) -> Script[str]:
    """Tell a message; returns what ended it."""
    recipient, channel = _RECIPIENT.search(header), _CHANNEL_NAME.search(header)
    if recipient is None:
        is_reasoning = channel is not None and channel[1] == "analysis"
        return (yield from reader.pass_until(_BODY_ENDS, Reasoning if is_reasoning else Content))
    tell, is_empty = calls.start(recipient[1].removeprefix("functions.")), True

    def arguments(text: str) -> AnswerEvent:
        nonlocal is_empty
        is_empty = False
        return tell(text)

    marker = yield from reader.pass_until(_BODY_ENDS, arguments)
    if is_empty:
        reader.tell(tell("{}"))
    return marker
