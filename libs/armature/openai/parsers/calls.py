"""Tool calls as JSON: `{"name": ..., "arguments": {...}}`, its arguments told as they come.

A call is told once it is certain to be one: its name is known and its arguments begin. From then on it stays a call,
and if it breaks off or breaks down, so do its arguments. White space around calls is not content.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from armature.openai.parsers.events import ToolCallArguments, ToolCallStart
from armature.openai.parsers.reader import Emit, Reader, Script

Tools = Mapping[str, Mapping[str, Any]]
"""The JSON schemas of the parameters, by function name."""

MAX_NAME = 256
"""Characters of a function's name or a key; what is longer is no call."""

_NO_NAME = '"\\<\n'
_OUTSIDE_STRING = re.compile(r'["{}\[\]<]')
_IN_STRING = re.compile(r'["\\]')


class Calls:
    """Counts an answer's calls and tells that one begins."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._count = 0

    def start(self, name: str, call_id: str | None = None) -> Emit:
        """A call begins. Returns how to tell its arguments."""
        index = self._count
        self._count += 1
        self._reader.tell(ToolCallStart(index, name, call_id))
        return lambda text: ToolCallArguments(index, text)


class JsonValue:
    """Where a JSON object or array ends. What stands in it is not checked.

    A `<` outside its strings ends it too: that is the marker behind arguments that broke off.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._depth = 0
        self._is_string = False
        self._is_escaped = False

    def advance(self, text: str, at: int) -> int:
        while at < len(text) and not self.is_done:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            found = (_IN_STRING if self._is_string else _OUTSIDE_STRING).search(text, at)
            if found is None:
                return len(text)
            at = found.end() - self._ends_before(found[0])
        return at

    def _ends_before(self, character: str) -> bool:
        """Take in what matters; whether the value ends before and not after it."""
        if character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_string = not self._is_string
            self.is_done = self._depth == 0 and not self._is_string
        elif character == "<":
            self.is_done = True
        else:
            self._depth += 1 if character in "{[" else -1
            self.is_done = self._depth <= 0
        return character == "<"


def read_call(reader: Reader, calls: Calls, is_known: Callable[[str], bool] = bool) -> Script[bool]:
    """Read and tell one call. False: what has been read since the reader was last settled is none.

    Names that `is_known` refuses are no calls.
    """
    if not (yield from reader.accept("{")):
        return False
    name: str | None = None
    held = ""
    """Arguments that came before the name."""
    is_first = True
    while not (yield from _accept_next(reader, "}")):
        if not is_first and not (yield from _accept_next(reader, ",")):
            return False
        is_first = False
        key = yield from _read_key(reader)
        if key == "name":
            name = yield from read_string(reader)
            if name is None or not is_known(name):
                return False
        elif key in ("arguments", "parameters") and name is not None:
            if not (yield from _pass_arguments(reader, calls, name)):
                return False
            yield from _skip_rest(reader)
            return True
        elif key in ("arguments", "parameters") and (yield from reader.peek()) == "{":
            held = yield from reader.read_through(JsonValue())
        elif key not in ("id", "type") or (yield from read_string(reader)) is None:
            return False
    if name is None:
        return False
    reader.settle()
    reader.tell(calls.start(name)(held or "{}"))
    return True


def read_string(reader: Reader) -> Script[str | None]:
    """Read a name or key in quotes; None if there is none or it is none that a function has."""
    if not (yield from reader.accept('"')):
        return None
    text = yield from reader.run_of(_NO_NAME, MAX_NAME)
    return text if text is not None and (yield from reader.accept('"')) else None


def pass_object(reader: Reader, emit: Emit) -> Script[None]:
    """Tell the object that begins here."""
    yield from reader.pass_through(JsonValue(), emit)


def _pass_arguments(reader: Reader, calls: Calls, name: str) -> Script[bool]:
    if (yield from reader.peek()) == "{":
        yield from pass_object(reader, calls.start(name))
        return True
    if (yield from reader.accept("null")):
        reader.settle()
        reader.tell(calls.start(name)("{}"))
        return True
    return False


def _skip_rest(reader: Reader) -> Script[None]:
    """What comes after the arguments, to the end of the call; nothing of it if it is not what it should be."""
    while not (yield from _accept_next(reader, "}", or_cut_off=True)):
        is_more = yield from _accept_next(reader, ",")
        if not is_more or (yield from _read_key(reader)) is None or (yield from read_string(reader)) is None:
            if (yield from reader.peek()):
                return reader.rewind()
            break
    reader.settle()


def _read_key(reader: Reader) -> Script[str | None]:
    yield from reader.skip_space()
    key = yield from read_string(reader)
    if key is None or not (yield from _accept_next(reader, ":")):
        return None
    yield from reader.skip_space()
    return key


def read_calls(reader: Reader, calls: Calls, end: str) -> Script[bool]:
    """Read calls up to `end`, which may be missing. False: there is none, or not only."""
    count = 0
    while not (count and (yield from _accept_next(reader, end, or_cut_off=True))):
        yield from reader.skip_space()
        if not (yield from read_call(reader, calls)):
            return False
        count += 1
    reader.settle()
    return True


def _accept_next(reader: Reader, literal: str, *, or_cut_off: bool = False) -> Script[bool]:
    yield from reader.skip_space()
    return (yield from reader.accept(literal, or_cut_off=or_cut_off))
