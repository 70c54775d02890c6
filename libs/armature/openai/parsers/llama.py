"""Llama 3: `{"name": ..., "parameters": {...}}`, bare or after `<|python_tag|>`; several calls are separated by `;`.

Bare JSON is a call only where the answer, or what follows a call, begins, and only with the name of a function that the
request offers: otherwise it is an answer in JSON.
"""

from armature.openai.parsers.calls import Calls, Tools, read_call
from armature.openai.parsers.events import Content
from armature.openai.parsers.reader import Reader, Script

TAG = "<|python_tag|>"


def llama(reader: Reader, tools: Tools) -> Script[None]:
    calls = Calls(reader)
    yield from reader.skip_space()
    if (yield from reader.peek()) == "{" and not (yield from _calls(reader, calls, tools)):
        reader.give_up()
    reader.rewind()
    while (yield from reader.pass_until((TAG,), Content)):
        yield from reader.skip_space()
        if not (yield from _calls(reader, calls, tools)):
            reader.give_up()


def _calls(reader: Reader, calls: Calls, tools: Tools) -> Script[bool]:
    if not (yield from read_call(reader, calls, tools.__contains__)):
        return False
    while True:
        yield from reader.skip_space()
        yield from reader.accept(";")
        yield from reader.skip_space()
        yield from reader.accept(TAG)
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            break
        if not (yield from read_call(reader, calls, tools.__contains__)):
            return False
    if (yield from reader.peek()):
        reader.rewind()
    return True
