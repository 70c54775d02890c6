"""How parsers are written: a script that reads text as if all of it were there, and waits where it is not.

A script is a generator; it yields when it has used up the text and goes on when there is more. What it looks at depends
on the text alone, never on how much of it has arrived, so every script gives the same events however the text is split.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

from armature.openai.parsers.events import AnswerEvent, Content

T = TypeVar("T")
Script = Generator[None, None, T]
Emit = Callable[[str], AnswerEvent]


class Scanner(Protocol):
    """Knows where something ends that is told as it comes."""

    is_done: bool

    def advance(self, text: str, at: int) -> int:
        """How far `text` from `at` on belongs to it; all of it unless `is_done`."""
        ...


SPACE = " \t\r\n"


class Reader:
    """The text that a script reads, and the events that it tells.

    Text stays until it is settled, so that a script can read on and, if it was wrong, tell all of that as content.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._is_over = False
        self._events: list[AnswerEvent] = []

    # --- from outside

    def add(self, text: str, *, is_over: bool = False) -> None:
        self._text += text
        self._is_over = is_over

    def take(self) -> list[AnswerEvent]:
        events, self._events = self._events, []
        return events

    # --- for scripts

    def tell(self, event: AnswerEvent) -> None:
        self._events.append(event)

    def settle(self) -> None:
        """What has been read has been understood."""
        self._text = self._text[self._at :]
        self._at = 0

    def rewind(self) -> None:
        """What has been read since it was last settled is to be read again."""
        self._at = 0

    def give_up(self, emit: Emit = Content) -> None:
        """What has been read since it was last settled is plain text after all."""
        if self._at:
            self.tell(emit(self._text[: self._at]))
            self.settle()

    def more(self) -> Script[bool]:
        """Wait for text to read; False: there is no more."""
        while self._at == len(self._text):
            if self._is_over:
                return False
            yield
        return True

    def peek(self) -> Script[str]:
        """The next character, which is not read by this; empty at the end."""
        return self._text[self._at] if (yield from self.more()) else ""

    def read(self) -> str:
        """The character that `peek` has shown."""
        self._at += 1
        return self._text[self._at - 1]

    def skip_space(self) -> Script[None]:
        while (yield from self.more()) and self._text[self._at] in SPACE:
            self._at += 1

    def drop_space(self) -> Script[None]:
        """White space that belongs to what has been read."""
        yield from self.skip_space()
        self.settle()

    def accept(self, literal: str, *, or_cut_off: bool = False) -> Script[bool]:
        """Read `literal`, if it is what comes next; with `or_cut_off` also as much of it as the answer ends with."""
        while not self._text.startswith(literal, self._at):
            if not literal.startswith(self._text[self._at :]):
                return False
            if self._is_over:
                self._at = len(self._text) if or_cut_off else self._at
                return or_cut_off
            yield
        self._at += len(literal)
        return True

    def read_through(self, scanner: Scanner) -> Script[str]:
        """Read as far as the scanner goes, or to the end."""
        start = self._at
        while not scanner.is_done and (yield from self.more()):
            self._at = scanner.advance(self._text, self._at)
        return self._text[start : self._at]

    def pass_through(self, scanner: Scanner, emit: Emit) -> Script[None]:
        """Tell it as it comes, as far as the scanner goes; what has been read before is settled."""
        self.settle()
        while not scanner.is_done and (yield from self.more()):
            self._at = scanner.advance(self._text, self._at)
            self._pass(self._at, emit)
            self._at = 0

    def run_of(self, stops: str, limit: int) -> Script[str | None]:
        """Read up to a character of `stops`, which is left; None if there is none within `limit` characters."""
        size = 0
        while (character := (yield from self.peek())) not in stops or not character:
            if not character or size == limit:
                return None
            self._at += 1
            size += 1
        return self._text[self._at - size : self._at]

    def read_until(self, marker: str, limit: int) -> Script[str | None]:
        """Read up to `marker` and it too; None if it does not come within `limit` characters.

        If that is because the answer is over, all of it has been read.
        """
        while (found := self._text.find(marker, self._at)) < 0:
            if len(self._text) >= self._at + limit + len(marker):
                return None
            if self._is_over:
                self._at = len(self._text)
                return None
            yield
        if found > self._at + limit:
            return None
        start, self._at = self._at, found + len(marker)
        return self._text[start:found]

    def pass_until(self, markers: Sequence[str], emit: Emit, space: str = SPACE) -> Script[str]:
        """Tell all text before the first of `markers`; this marker has then been read. Empty: the answer is over.

        White space, here `space`, in front of a marker belongs to the marker. It and the marker remain unsettled.
        What has been read before must be settled. No marker begins with another.
        """
        longest = max(map(len, markers))
        while True:
            start, marker = _first(self._text, markers)
            if marker:
                self._pass(len(self._text[:start].rstrip(space)), emit)
                self._at = self._text.index(marker) + len(marker)
                return marker
            if self._is_over:
                self._pass(len(self._text), emit)
                return ""
            keep = _beginning(self._text, markers, longest)
            self._pass(len(self._text[: len(self._text) - keep].rstrip(space)), emit)
            yield

    def pass_rest(self, emit: Emit) -> Script[None]:
        """Tell everything, to the end of the answer."""
        self.rewind()
        while (yield from self.more()):
            self._pass(len(self._text), emit)

    def _pass(self, size: int, emit: Emit) -> None:
        if size:
            self.tell(emit(self._text[:size]))
            self._text = self._text[size:]


class ScriptParser:
    """An `AnswerParser` that runs a script."""

    def __init__(self, script: Callable[[Reader], Script[None]]) -> None:
        self._reader = Reader()
        self._script: Script[None] | None = script(self._reader)

    def feed(self, text: str) -> list[AnswerEvent]:
        self._reader.add(text)
        return self._go_on()

    def finish(self) -> list[AnswerEvent]:
        self._reader.add("", is_over=True)
        return self._go_on()

    def _go_on(self) -> list[AnswerEvent]:
        if self._script is not None and next(self._script, True):
            self._script = None
        return self._reader.take()


def _first(text: str, markers: Sequence[str]) -> tuple[int, str]:
    """Where the first marker begins and which it is, the longest of several; empty if there is none."""
    found = [(start, -len(marker), marker) for marker in markers if (start := text.find(marker)) >= 0]
    if not found:
        return -1, ""
    start, _, marker = min(found)
    return start, marker


def _beginning(text: str, markers: Sequence[str], longest: int) -> int:
    """Length of the longest end of `text` with which a marker begins."""
    for start in range(max(0, len(text) - longest + 1), len(text)):
        for marker in markers:
            if text[start] == marker[0] and marker.startswith(text[start:]):
                return len(text) - start
    return 0
