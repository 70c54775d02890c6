"""Keeps one worker's event stream whole: what to ask for, and what of each message to apply.

It holds no blocks; it watches epochs and sequence numbers. Invariant: what was applied since the last REPLACE is a
complete beginning of what the worker has told in this epoch, each event once and in order.
"""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class Position:
    """Where a stream stands: the next event wanted, and of which epoch. Epoch 0: nothing is known, send everything."""

    epoch: int = 0
    next_seq: int = 0


@dataclass(frozen=True, slots=True)
class BatchHeader:
    """What a message of a worker's event stream says besides its events (`KvEventBatch` in worker.proto)."""

    epoch: int
    first_seq: int
    num_events: int
    is_reset: bool = False
    has_more: bool = False


class Verdict(Enum):
    APPLY = "apply"
    """Apply the events from `first_event` on."""
    REPLACE = "replace"
    """Forget what the worker holds, then apply all events."""
    RESYNC = "resync"
    """Apply nothing; open the stream anew and ask for `SourceTracker.position`."""


@dataclass(frozen=True, slots=True)
class Step:
    verdict: Verdict
    reason: str = ""
    """Why events are missing, for RESYNC: `gap`, `epoch` or `behind`."""
    first_event: int = 0


class SourceTracker:
    """Follows one worker.

    A gap is first repaired from the worker's replay ring; if the answer has the same gap, by a dump. It starts at
    `position`: that of a snapshot whose blocks are applied already, or nowhere.
    """

    def __init__(self, position: Position = Position()) -> None:
        self.position = position
        """What to ask the worker for when its stream is opened."""
        self.is_exact = False
        """Whether all that the worker has told is known: not before its first dump is whole, nor while disconnected."""
        self._in_dump = False
        self._repairing = False

    def disconnected(self) -> None:
        """The stream has ended, for whatever reason. Half a dump is worth nothing."""
        self.is_exact = False
        if self._in_dump:
            self._forget()

    def receive(self, header: BatchHeader) -> Step:
        """Say what to do with the next message of the stream."""
        following = header.first_seq + header.num_events
        if header.is_reset:
            return self._accept(Verdict.REPLACE, header, header.first_seq)
        if header.epoch != self.position.epoch:
            if header.first_seq == 1:
                return self._accept(Verdict.REPLACE, header, following)
            return self._broken("epoch", forget=True)
        ahead = header.first_seq - self.position.next_seq
        if self._in_dump and ahead == 0:
            return self._accept(Verdict.APPLY, header, header.first_seq)
        if self._in_dump or (ahead < 0 and not header.num_events):
            # Half a dump, or a worker that has told less than we have heard: not the history that we know.
            return self._broken("behind", forget=True)
        if ahead > 0:
            second, self._repairing = self._repairing, True
            return self._broken("gap", forget=second)
        known = min(-ahead, header.num_events)
        return self._accept(Verdict.APPLY, header, max(following, self.position.next_seq), known)

    def _accept(self, verdict: Verdict, header: BatchHeader, next_seq: int, known: int = 0) -> Step:
        is_dump = header.is_reset or self._in_dump
        self.position = Position(header.epoch, next_seq)
        self._in_dump = is_dump and header.has_more
        self.is_exact = not self._in_dump
        self._repairing = False
        return Step(verdict, first_event=known)

    def _broken(self, reason: str, *, forget: bool) -> Step:
        self.is_exact = False
        if forget:
            self._forget()
        return Step(Verdict.RESYNC, reason)

    def _forget(self) -> None:
        self.position = Position()
        self._in_dump = False
