"""One request on a worker's stream: a bounded queue between the stream's reader and the request's own task.

A task that is woken for a token costs more than the token. So what has arrived is offered to `on_deltas` first, where
there is one; only what that does not take waits for the task: a few tokens as they came, more of them packed.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from armature.openai.serving.backlog import PART_TOKENS, SCORED_PART_TOKENS, Backlog, PackedDeltas
from armature.v1.worker_pb2 import TokenDelta


class WorkerFailedError(Exception):
    """The worker can't go on with this request; another may."""


class DeadlinePassedError(Exception):
    """The request's time is up. `before_first_token` tells which limit it was."""

    def __init__(self, *, before_first_token: bool) -> None:
        super().__init__()
        self.before_first_token = before_first_token


class ClientTooSlowError(Exception):
    """More is waiting for this client than is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Times of one request on one worker; instants as the event loop counts them."""

    first_token_s: float
    """Silence allowed before the first token."""
    stall_s: float
    """Silence allowed after it."""
    first_token_due_s: float
    """When the answer's first token is due; infinity if it came from another worker."""
    due_s: float
    """When the whole answer is due."""
    backlog: Backlog
    """In which it counts what waits for its client."""


AT_ONCE_TOKENS = PART_TOKENS
"""Given to a reader who was late, before the others have their turn."""
LOOSE_TOKENS = 16
"""May wait for a late reader as they came."""


class DecodeCall:
    """One reader; `close` when done with it, in any case. Its stream calls `push`, `deliver` and `fail`."""

    __slots__ = (
        "_deltas",
        "_end",
        "_failure",
        "_is_begun",
        "_is_behind",
        "_last_s",
        "_limits",
        "_packed",
        "_tokens",
        "_waiter",
        "on_deltas",
        "stream_id",
    )

    def __init__(self, stream_id: int, limits: Limits, now_s: float, end: "Callable[[DecodeCall], None]") -> None:
        self.stream_id = stream_id
        self.on_deltas: Callable[[list[TokenDelta]], bool] | None = None
        """Is offered what arrives while `read` waits, and says whether it has taken it."""
        self._limits = limits
        self._last_s = now_s
        self._end = end
        self._is_begun = False
        self._is_behind = False
        self._packed = PackedDeltas(limits.backlog)
        self._deltas: list[TokenDelta] = []
        """What came after those that are packed."""
        self._tokens = 0
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> list[TokenDelta]:
        """What has arrived, at least one delta; a part of it if it is much.

        Raises:
            WorkerFailedError, DeadlinePassedError, ClientTooSlowError: there will be no more.
        """
        if self._is_behind:
            await asyncio.sleep(0)
        while not (self._deltas or self._packed):
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._packed:
            deltas = self._packed.take()
            self._is_behind = bool(self._packed or self._deltas)
            return deltas
        if self._tokens > AT_ONCE_TOKENS:
            return self._some()
        deltas, self._deltas, self._tokens, self._is_behind = self._deltas, [], 0, False
        return deltas

    def _some(self) -> list[TokenDelta]:
        tokens, count = 0, 0
        for delta in self._deltas:
            tokens += len(delta.token_ids)
            count += 1
            if tokens >= AT_ONCE_TOKENS:
                break
        deltas, self._deltas = self._deltas[:count], self._deltas[count:]
        self._tokens -= tokens
        self._is_behind = bool(self._deltas)
        return deltas

    def close(self) -> None:
        """Nobody reads any more; the worker is told unless it has finished."""
        self._deltas, self._tokens = [], 0
        self._packed.clear()
        self._end(self)

    def push(self, delta: TokenDelta, now_s: float) -> None:
        """A delta has arrived; `deliver` when it is the last for now."""
        self._last_s = now_s
        self._is_begun = True
        self._deltas.append(delta)
        self._tokens += len(delta.token_ids)

    def deliver(self) -> None:
        """Hand on what has arrived."""
        if self._waiter is None or self._waiter.done():  # the reader is not done with what came before
            if self._tokens >= LOOSE_TOKENS:
                self._pack()
            return
        if self.on_deltas is not None and self._failure is None and self._tokens <= AT_ONCE_TOKENS:
            try:
                if self.on_deltas(self._deltas):
                    self._deltas, self._tokens = [], 0
                    return
            except Exception as error:  # the others on the stream have no part in it
                self._deltas, self._tokens = [], 0
                self.fail(error)
        if self._tokens > SCORED_PART_TOKENS and self._deltas[0].logprobs:
            self._pack()
        self._wake()

    def _pack(self) -> None:
        is_full = self._packed.is_full
        self._packed.add(self._deltas)
        self._deltas, self._tokens = [], 0
        if is_full:
            self.fail(ClientTooSlowError())
            self._end(self)

    def fail(self, failure: Exception) -> None:
        """There will be no more; what has arrived can still be read."""
        if self._failure is None:
            self._failure = failure
            self._wake()

    def overdue(self, now_s: float) -> Exception | None:
        """What this call's silence means by now, if anything."""
        limits = self._limits
        if now_s >= limits.due_s:
            return DeadlinePassedError(before_first_token=False)
        if not self._is_begun and now_s >= limits.first_token_due_s:
            return DeadlinePassedError(before_first_token=True)
        silence_s = now_s - self._last_s
        if silence_s >= (limits.stall_s if self._is_begun else limits.first_token_s):
            return WorkerFailedError(f"no token for {silence_s:.1f} s")
        return None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
