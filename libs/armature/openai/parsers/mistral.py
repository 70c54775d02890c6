"""Mistral: `[TOOL_CALLS]`, then a JSON list of calls, or since v11 `name[ARGS]{...}` with its own marker for each call.

v11 may have `[CALL_ID]` and an id before `[ARGS]`, and some models leave out `[ARGS]`.
"""

from armature.openai.parsers.calls import MAX_NAME, Calls, Tools, pass_object, read_call
from armature.openai.parsers.events import Content
from armature.openai.parsers.reader import Reader, Script

START, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def mistral(reader: Reader, tools: Tools) -> Script[None]:
    calls = Calls(reader)
    while (yield from reader.pass_until((START,), Content)):
        yield from reader.skip_space()
        is_list = (yield from reader.peek()) in ("[", "{")
        if (yield from (_list(reader, calls) if is_list else _named(reader, calls))):
            yield from reader.drop_space()
        else:
            reader.give_up()


def _list(reader: Reader, calls: Calls) -> Script[bool]:
    """Calls in brackets, or a single one without."""
    if not (yield from reader.accept("[")):
        return (yield from read_call(reader, calls))
    while True:
        yield from reader.skip_space()
        if not (yield from read_call(reader, calls)):
            return False
        yield from reader.skip_space()
        if (yield from reader.accept("]", or_cut_off=True)):
            reader.settle()
            return True
        if not (yield from reader.accept(",")):
            return False


def _named(reader: Reader, calls: Calls) -> Script[bool]:
    name = yield from reader.run_of("[{\n", MAX_NAME)
    call_id: str | None = None
    if not name or not name.strip():
        return False
    if (yield from reader.accept(ID)):
        call_id = yield from reader.run_of("[{\n", MAX_NAME)
        if call_id is None:
            return False
    yield from reader.accept(ARGUMENTS)
    yield from reader.skip_space()
    if (yield from reader.peek()) != "{":
        return False
    yield from pass_object(reader, calls.start(name.strip(), call_id))
    return True
