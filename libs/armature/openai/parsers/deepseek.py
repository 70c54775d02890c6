"""DeepSeek: special tokens around each call.

V3 and R1 write `function<sep>name`, then the arguments in a fenced block; V3.1 writes `name<sep>{...}`.
"""

from armature.openai.parsers.calls import MAX_NAME, Calls, Tools, pass_object
from armature.openai.parsers.events import Content
from armature.openai.parsers.reader import Reader, Script

CALLS_START, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
START, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE_START, _FENCE_END = "```json", "```"


def deepseek(reader: Reader, tools: Tools) -> Script[None]:
    calls = Calls(reader)
    while marker := (yield from reader.pass_until((CALLS_START, START), Content)):
        if marker == CALLS_START:
            yield from reader.skip_space()
        if (marker == START or (yield from reader.accept(START))) and (yield from _calls(reader, calls)):
            yield from reader.drop_space()
        else:
            reader.give_up()


def _calls(reader: Reader, calls: Calls) -> Script[bool]:
    """Calls up to the last one's end; the first one's start has been read."""
    while (yield from _call(reader, calls)):
        yield from reader.skip_space()
        if not (yield from reader.accept(START)):
            yield from reader.accept(CALLS_END, or_cut_off=True)
            reader.settle()
            return True
    return False


def _call(reader: Reader, calls: Calls) -> Script[bool]:
    name = yield from reader.run_of("<\n", MAX_NAME)
    if not name or not (yield from reader.accept(SEPARATOR)):
        return False
    is_fenced = (yield from reader.peek()) != "{"
    if is_fenced:
        name = yield from reader.run_of("<\n", MAX_NAME)
        yield from reader.skip_space()
        if not name or not (yield from reader.accept(_FENCE_START)):
            return False
        yield from reader.skip_space()
        if (yield from reader.peek()) != "{":
            return False
    yield from pass_object(reader, calls.start(name.strip()))
    yield from reader.skip_space()
    if is_fenced:
        yield from reader.accept(_FENCE_END, or_cut_off=True)
        yield from reader.skip_space()
    yield from reader.accept(END, or_cut_off=True)
    reader.settle()
    return True
