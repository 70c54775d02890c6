"""What a parser makes of an answer's text, piece by piece.

Invariant: however the text is split, the events are the same once adjacent ones of a kind are `merged`. Nothing is
lost: what looks like a tool call and turns out to be none is content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model says to itself before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins; its arguments follow before anything else comes."""

    index: int
    """Counts the answer's calls, from 0."""
    name: str
    call_id: str | None = None
    """As the model wrote it; None, which is the rule: whoever serves the answer gives it one."""


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A piece of a call's arguments. All pieces together are a JSON object, unless the answer was cut off in it."""

    index: int
    text: str


AnswerEvent = Content | Reasoning | ToolCallStart | ToolCallArguments


class AnswerParser(Protocol):
    """Reads one answer. Pure and synchronous; never raises, whatever the text."""

    def feed(self, text: str) -> list[AnswerEvent]:
        """What this text completes."""
        ...

    def finish(self) -> list[AnswerEvent]:
        """What was held back; the answer has ended."""
        ...


class PlainText:
    """Everything is content: the parser of models and requests without tools and reasoning."""

    def feed(self, text: str) -> list[AnswerEvent]:
        return [Content(text)] if text else []

    def finish(self) -> list[AnswerEvent]:
        return []


def merged(events: Iterable[AnswerEvent]) -> list[AnswerEvent]:
    """The events with adjacent pieces of the same text joined."""
    out: list[AnswerEvent] = []
    for event in events:
        last = out[-1] if out else None
        match last, event:
            case Content(), Content():
                out[-1] = Content(last.text + event.text)
            case Reasoning(), Reasoning():
                out[-1] = Reasoning(last.text + event.text)
            case ToolCallArguments(), ToolCallArguments() if last.index == event.index:
                out[-1] = ToolCallArguments(last.index, last.text + event.text)
            case _:
                out.append(event)
    return out
