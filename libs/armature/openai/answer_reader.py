"""One answer's pieces told apart: content, reasoning and tool calls, for requests that have a `Reading`."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from armature.openai.parsers.events import (
    AnswerEvent,
    Content,
    Reasoning,
    ToolCallArguments,
    ToolCallStart,
    merged,
)
from armature.openai.parsers.families import Reading

TOOL_CALLS = "tool_calls"
"""Why an answer ended: with calls, whose results the model waits for."""


@dataclass(slots=True)
class ToolCall:
    call_id: str
    name: str
    arguments: str = ""
    """JSON as the model wrote it."""


class AnswerMessage:
    """A whole answer, put together."""

    def __init__(self, said: Iterable[AnswerEvent]) -> None:
        content: list[str] = []
        reasoning: list[str] = []
        self.calls: list[ToolCall] = []
        for event in said:
            match event:
                case Content(text):
                    content.append(text)
                case Reasoning(text):
                    reasoning.append(text)
                case ToolCallStart(_, name, call_id):
                    self.calls.append(ToolCall(call_id or "", name))
                case ToolCallArguments(_, text):
                    self.calls[-1].arguments += text
        self.content = "".join(content)
        self.reasoning = "".join(reasoning)


class AnswerReader:
    """Feeds on text, tells what it says. Calls get their ids here."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._parser = reading.parser()
        self._silent_tokens = 0
        self._is_answering = False
        self.reasoning_tokens = 0
        """Tokens that told reasoning, with those in front of them that told nothing, which are its tag."""
        self.has_calls = False

    @property
    def counts(self) -> bool:
        """Whether tokens may still be reasoning, and are to be read one by one."""
        return self._reading.has_reasoning and (self._reading.reasons_again or not self._is_answering)

    def read(self, text: str, tokens: int, *, is_last: bool) -> Sequence[AnswerEvent]:
        """What this text, made of so many tokens, completes."""
        events = self._parser.feed(text)
        if is_last:
            events += self._parser.finish()
        self._count(tokens, events)
        if not events or (len(events) == 1 and isinstance(events[0], (Content, Reasoning))):  # nearly all
            return events
        return list(self._complete(merged(events)))

    def _count(self, tokens: int, events: Sequence[AnswerEvent]) -> None:
        """Tokens that told nothing belong to what is told next: they are parts of characters, or tags."""
        self._silent_tokens += tokens
        if events:
            self._is_answering = not isinstance(events[-1], Reasoning)
            if isinstance(events[0], Reasoning):
                self.reasoning_tokens += self._silent_tokens
            self._silent_tokens = 0

    def _complete(self, events: Sequence[AnswerEvent]) -> Iterator[AnswerEvent]:
        for event in events:
            if isinstance(event, (ToolCallStart, ToolCallArguments)) and event.index and not self._reading.is_parallel:
                continue
            if isinstance(event, ToolCallStart):
                self.has_calls = True
                yield replace(event, call_id=event.call_id or self._new_call_id())
            else:
                yield event

    def _new_call_id(self) -> str:
        """Unique in its conversation. Mistral's templates refuse other ids than nine letters or digits."""
        return secrets.token_hex(5)[:9] if self._reading.format.tools == "mistral" else f"call_{secrets.token_hex(12)}"
