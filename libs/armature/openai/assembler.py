"""From tokens to what a client reads: text in whole characters, cut at stop strings, with log probabilities.

One `Assembler` per answer. Invariant: the text, the reason and the token count do not depend on how the tokens were cut
into batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from armature.openai.answer_reader import TOOL_CALLS, AnswerReader
from armature.openai.detokenizer import detokenizer
from armature.openai.packed_tokens import PackedTokens, TopTokens
from armature.openai.parsers.events import AnswerEvent, Content, merged
from armature.openai.parsers.families import Reading
from armature.openai.stops import StopStrings
from armature.openai.vocabulary import Vocabulary

STOP, LENGTH = "stop", "length"

_NOTHING = frozenset[str]()


@dataclass(slots=True)
class Piece:
    """A piece of the answer."""

    text: str
    tokens: Sequence[TopTokens] = ()
    """Log probabilities of the tokens that end in this piece, if asked for."""
    offsets: Sequence[int] = ()
    """Where in the answer's text each of `tokens` begins, in characters."""
    token_ids: Sequence[int] = ()
    """Its tokens; without log probabilities those of a character that is not complete yet come first."""
    finish_reason: str | None = None
    index: int = 0
    """Which of several answers to a prompt it belongs to."""
    events: Sequence[AnswerEvent] | None = None
    """What the text says, if the request has it told apart."""

    @property
    def said(self) -> Sequence[AnswerEvent]:
        """What the text says; without `events` all of it is content."""
        if self.events is not None:
            return self.events
        return (Content(self.text),) if self.text else ()


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one answer that follow one another as one."""
    return Piece(
        text="".join([piece.text for piece in pieces]),
        tokens=[token for piece in pieces for token in piece.tokens],
        offsets=[offset for piece in pieces for offset in piece.offsets],
        token_ids=[token_id for piece in pieces for token_id in piece.token_ids],
        finish_reason=pieces[-1].finish_reason,
        index=pieces[-1].index,
        events=None if pieces[-1].events is None else merged(event for piece in pieces for event in piece.said),
    )


class Whole:
    """One answer, put together when all its pieces have come."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._tokens = PackedTokens()

    def add(self, piece: Piece) -> None:
        """Takes the piece over."""
        if piece.tokens:
            self._tokens.extend(piece.tokens)
            piece.tokens = ()
        self._pieces.append(piece)

    def piece(self) -> Piece:
        """All of it."""
        whole = joined(self._pieces)
        whole.tokens = self._tokens
        return whole


@dataclass(slots=True)
class _Pending:
    """Tokens with log probabilities whose text has not been sent."""

    tokens: list[TopTokens] = field(default_factory=list[TopTokens])
    offsets: list[int] = field(default_factory=list[int])


class Assembler:
    """Feeds on tokens, yields pieces.

    `end_ids` are tokens that end the answer and do not show in it, if the worker says that it ended with one. With a
    `reading` each piece tells what its text says.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        stop: Sequence[str] = (),
        end_ids: frozenset[int] = frozenset(),
        prompt: Sequence[int] = (),
        reading: Reading | None = None,
    ) -> None:
        self._detokenizer = detokenizer(vocabulary, prompt, reading.markers if reading else _NOTHING)
        self._reader = AnswerReader(reading) if reading else None
        self._stops = StopStrings(stop) if stop else None
        self._end_ids = end_ids
        self._pending = _Pending()
        self._has_logprobs = False
        self._decoded_characters = 0
        self._sent_characters = 0
        self.completion_tokens = 0

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended the answer."""
        return self._stops.hit if self._stops else None

    def feed(
        self, token_ids: Sequence[int], logprobs: Sequence[TopTokens] = (), finish_reason: str | None = None
    ) -> Piece:
        """The piece that these tokens complete; it has a `finish_reason` if the answer ends here.

        A stop string may end it before the worker does: the caller then cancels the work.
        """
        if self._reader is None and self._stops is None and not (logprobs or self._has_logprobs):
            return self._feed_plainly(token_ids, finish_reason)
        if self._reader is not None and self._reader.counts and len(token_ids) > 1:
            return self._feed_one_by_one(token_ids, logprobs, finish_reason)
        self._has_logprobs = self._has_logprobs or bool(logprobs)
        if self._stops is None and not self._has_logprobs:
            piece = self._feed_plainly(token_ids, finish_reason)
        else:
            piece = self._feed_singly(token_ids, logprobs, finish_reason)
        return piece if self._reader is None else self._told(piece, self._reader, len(token_ids))

    @property
    def reasoning_tokens(self) -> int | None:
        """As many of the tokens are reasoning; None if that is not told apart."""
        return None if self._reader is None else self._reader.reasoning_tokens

    def _feed_one_by_one(
        self, token_ids: Sequence[int], logprobs: Sequence[TopTokens], finish_reason: str | None
    ) -> Piece:
        """So that it does not depend on batches with which token reasoning ends."""
        pieces: list[Piece] = []
        for position in range(len(token_ids)):
            is_last = position == len(token_ids) - 1
            here = slice(position, position + 1)
            pieces.append(self.feed(token_ids[here], logprobs[here], finish_reason if is_last else None))
            if pieces[-1].finish_reason is not None:
                break
        return joined(pieces)

    def _told(self, piece: Piece, reader: AnswerReader, tokens: int) -> Piece:
        piece.events = reader.read(piece.text, tokens, is_last=piece.finish_reason is not None)
        if piece.finish_reason == STOP and reader.has_calls:
            piece.finish_reason = TOOL_CALLS
        return piece

    def _feed_plainly(self, token_ids: Sequence[int], finish_reason: str | None) -> Piece:
        self.completion_tokens += len(token_ids)
        if finish_reason is None:
            return Piece(self._detokenizer.feed(token_ids), token_ids=token_ids)
        shown = token_ids[:-1] if self._ends_silently(token_ids, finish_reason) else token_ids
        text = self._detokenizer.feed(shown) + self._detokenizer.finish()
        return Piece(text, token_ids=token_ids, finish_reason=finish_reason)

    def _feed_singly(self, token_ids: Sequence[int], logprobs: Sequence[TopTokens], finish_reason: str | None) -> Piece:
        silent = len(token_ids) - 1 if self._ends_silently(token_ids, finish_reason) else -1
        texts: list[str] = []
        for position, token_id in enumerate(token_ids):
            self.completion_tokens += 1
            if position < len(logprobs):
                self._pending.tokens.append(logprobs[position])
                self._pending.offsets.append(self._decoded_characters)
            if position != silent:
                texts.append(self._pass(self._detokenizer.feed((token_id,))))
            if self._stops and self._stops.is_hit:
                return self._piece("".join(texts), token_ids[: position + 1], STOP)
        if finish_reason is not None:
            texts.append(self._pass(self._detokenizer.finish()))
            if self._stops:
                finish_reason = STOP if self._stops.is_hit else finish_reason
                texts.append(self._stops.finish())
        return self._piece("".join(texts), token_ids, finish_reason)

    def _pass(self, text: str) -> str:
        self._decoded_characters += len(text)
        return self._stops.feed(text) if self._stops else text

    def _piece(self, text: str, token_ids: Sequence[int], finish_reason: str | None) -> Piece:
        """The piece with the log probabilities of the tokens that begin in the text sent so far."""
        self._sent_characters += len(text)
        pending = self._pending
        if not self._has_logprobs:
            return Piece(text, token_ids=token_ids, finish_reason=finish_reason)
        hit = self._stops is not None and self._stops.is_hit
        if finish_reason is None or hit:
            # What stands behind the stop string is never sent; a token without text goes with the one after it.
            ready = sum(offset < self._sent_characters for offset in pending.offsets)
        else:
            ready = len(pending.tokens)
        tokens = pending.tokens[:ready]
        piece = Piece(text, tokens, pending.offsets[:ready], [token[0][0] for token in tokens], finish_reason)
        del pending.tokens[:ready], pending.offsets[:ready]
        return piece

    def _ends_silently(self, token_ids: Sequence[int], finish_reason: str | None) -> bool:
        return finish_reason == STOP and bool(token_ids) and token_ids[-1] in self._end_ids
