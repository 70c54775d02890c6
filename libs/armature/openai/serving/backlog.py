"""What waits for a client that is slow to read: packed, in parts, and not more than a number of bytes.

As objects a token with log probabilities takes ten times as much, keeps the memory of the whole frame that it came in,
and leaves heaps full of holes when it goes.
"""

from collections import deque
from collections.abc import Iterator, Sequence

from armature.v1.worker_pb2 import TokenDelta, TokenFrame

PART_TOKENS = 64
SCORED_PART_TOKENS = 16
"""With log probabilities a token can cost 0.1 ms and 2 KiB when it is read."""


class Backlog:
    """How much waits for one client; the answers to its request share it."""

    __slots__ = ("max_bytes", "size_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= self.max_bytes


class PackedDeltas:
    """Of one answer, in order. A delta of many tokens with log probabilities may come back as several."""

    __slots__ = ("_backlog", "_parts")

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._parts: deque[bytes] = deque()

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def is_full(self) -> bool:
        """Nothing more should be added."""
        return self._backlog.is_full

    def add(self, deltas: Sequence[TokenDelta]) -> None:
        for part in _parts(deltas):
            packed = TokenFrame(deltas=part).SerializeToString()
            self._parts.append(packed)
            self._backlog.size_bytes += len(packed)

    def take(self) -> list[TokenDelta]:
        """The first part; there must be one."""
        packed = self._parts.popleft()
        self._backlog.size_bytes -= len(packed)
        return [*TokenFrame.FromString(packed).deltas]

    def clear(self) -> None:
        self._backlog.size_bytes -= sum(map(len, self._parts))
        self._parts.clear()


def _parts(deltas: Sequence[TokenDelta]) -> Iterator[list[TokenDelta]]:
    part: list[TokenDelta] = []
    room = PART_TOKENS
    for delta in deltas:
        most = SCORED_PART_TOKENS if delta.logprobs else PART_TOKENS
        for piece in _split(delta, most) if delta.logprobs else (delta,):
            part.append(piece)
            room = min(room, most) - len(piece.token_ids)
            if room <= 0:
                yield part
                part, room = [], PART_TOKENS
    if part:
        yield part


def _split(delta: TokenDelta, most: int) -> Sequence[TokenDelta]:
    """In pieces of at most so many tokens; what is told at the first token or at the end stays there."""
    count = len(delta.token_ids)
    if count <= most:
        return (delta,)
    pieces = [
        TokenDelta(
            stream_id=delta.stream_id,
            output_index=delta.output_index + begin,
            token_ids=delta.token_ids[begin : begin + most],
            logprobs=delta.logprobs[begin : begin + most],
        )
        for begin in range(0, count, most)
    ]
    first, last = pieces[0], pieces[-1]
    if delta.HasField("info"):
        first.info.CopyFrom(delta.info)
    if delta.HasField("prompt_logprobs"):
        first.prompt_logprobs.CopyFrom(delta.prompt_logprobs)
    last.finish_reason = delta.finish_reason
    if delta.HasField("error"):
        last.error.CopyFrom(delta.error)
    return pieces
