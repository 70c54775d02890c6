"""Events of responses that are made in the background and streamed: clients may leave, and read on later.

The gateway that makes a response has its events in memory until some minutes after its end. Others read a copy in
Redis, if there is one: a list with an event in each place, so that an event's number is where it stands.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from armature.openai.errors import ApiError
from armature.openai.serving.responses.background import Background, Name
from armature.runtime.pulse import Pulse
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

KEPT_S = 600.0
"""After the end of a response."""
MAX_TAPE_BYTES = 8 * 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
"""Of all tapes of a gateway; the oldest that are complete go first."""
_PIECE_EVENTS = 256
_LOOK_INTERVAL_S = 0.2
_LOOKS = 5
_END = b""
_BETWEEN = b"\n\n"

LOST = "its events are not kept any more; ask for the response without stream"


class Tape:
    """The events of one response from its first on, each as bytes to be written."""

    def __init__(self, grown: Callable[[int], None]) -> None:
        self.events: list[bytes] = []
        self.size_bytes = 0
        self.is_complete = False
        self.is_lost = False
        """There was no room for them."""
        self._grown = grown
        self._changed = Pulse()

    def send_more(self, events: bytes) -> bool:
        """Some more events; there is never anything to wait for."""
        if events and not self.is_lost:
            self.events += [event + _BETWEEN for event in events.split(_BETWEEN)[:-1]]
            self.size_bytes += len(events)
            self._grown(len(events))
            if self.size_bytes > MAX_TAPE_BYTES:
                self.lose()
            self._changed.fire()
        return True

    async def send_events(self, events: bytes) -> None:
        self.send_more(events)

    def end(self) -> None:
        """There are no more events."""
        self.is_complete = True
        self._changed.fire()

    def lose(self) -> None:
        """Give up the events, for good."""
        self._grown(-self.size_bytes)
        self.is_lost = True
        self.events.clear()
        self.size_bytes = 0
        self._changed.fire()

    async def read(self, first: int) -> AsyncIterator[list[bytes]]:
        """The events from number `first` on, as they come, to the end.

        Raises:
            ApiError: 500, they are lost.
        """
        at = first
        while True:
            if self.is_lost:
                raise _lost()
            if at < len(self.events):
                piece = self.events[at : at + _PIECE_EVENTS]
                at += len(piece)
                yield piece
            elif self.is_complete:
                return
            else:
                await self._changed.wait()


class Tapes:
    """Those of one gateway, and its view of the others'; `tasks` own what copies them to Redis."""

    def __init__(
        self, tasks: asyncio.TaskGroup, redis: RedisClient | None, prefix: str, background: Background
    ) -> None:
        self._tasks = tasks
        self._redis = redis
        self._prefix = prefix
        self._background = background
        self._tapes: dict[Name, Tape] = {}
        self._size_bytes = 0

    def begin(self, name: Name) -> Tape:
        """A tape for a response that is about to be made; `end` it."""
        tape = self._tapes[name] = Tape(self._on_grown)
        if self._redis is not None:
            self._tasks.create_task(self._copy(self._redis, name, tape), name=f"tape of {name[1]}")
        return tape

    def end(self, name: Name, tape: Tape) -> None:
        """The response has its last event, or will have no more."""
        tape.end()
        asyncio.get_running_loop().call_later(KEPT_S, self._forget, name, tape)

    async def read(self, name: Name, first: int) -> AsyncIterator[list[bytes]] | None:
        """The events of a response from number `first` on, wherever it is made; None: they are not kept."""
        tape = self._tapes.get(name)
        if tape is not None:
            return None if tape.is_lost else tape.read(first)
        if self._redis is None:
            return None
        try:
            for _ in range(_LOOKS):  # its first event may be on its way
                if await self._redis.call("EXISTS", self._key(name)):
                    return self._read_copy(self._redis, name, first)
                if not await self._background.is_running(name):
                    break
                await asyncio.sleep(_LOOK_INTERVAL_S)
        except RedisUnavailableError:
            pass
        return None

    async def _read_copy(self, redis: RedisClient, name: Name, first: int) -> AsyncIterator[list[bytes]]:
        at, has_ended = first, False
        while True:
            try:
                events: list[bytes] = await redis.call("LRANGE", self._key(name), at, at + _PIECE_EVENTS - 1)
            except RedisUnavailableError as error:
                raise _lost() from error
            is_last = bool(events) and events[-1] == _END
            if shown := events[:-1] if is_last else events:
                yield shown
                at += len(shown)
            elif is_last:
                return
            elif has_ended:  # without its last event: its gateway is gone
                raise _lost()
            else:
                has_ended = not await self._background.is_running(name)
                await asyncio.sleep(0.0 if has_ended else _LOOK_INTERVAL_S)

    async def _copy(self, redis: RedisClient, name: Name, tape: Tape) -> None:
        """Best effort: a copy without its end is taken for lost."""
        key = self._key(name)
        try:
            async for events in tape.read(0):
                await redis.call_all([("RPUSH", key, *events), ("EXPIRE", key, int(KEPT_S))])
            await redis.call_all([("RPUSH", key, _END), ("EXPIRE", key, int(KEPT_S))])
        except (RedisUnavailableError, ApiError):
            pass

    def _on_grown(self, size_bytes: int) -> None:
        """Complete tapes go, the oldest first; if that is not enough, those that are being written."""
        self._size_bytes += size_bytes
        if self._size_bytes > MAX_BYTES >= self._size_bytes - size_bytes:
            for name, tape in sorted(self._tapes.items(), key=lambda item: not item[1].is_complete):
                if self._size_bytes > MAX_BYTES:
                    self._forget(name, tape)

    def _forget(self, name: Name, tape: Tape) -> None:
        if self._tapes.get(name) is tape:
            del self._tapes[name]
            tape.lose()

    def _key(self, name: Name) -> str:
        owner, response_id = name
        return f"{self._prefix}events:{owner}:{response_id}"


def error_event(error: ApiError, number: int) -> bytes:
    """What ends a stream whose response may be fine, but whose events can't be told."""
    fields = {"type": "error", "sequence_number": number, "code": "server_error", "message": error.message}
    return b"event: error\ndata: %b\n\n" % msgspec.json.encode(fields | {"param": None})


def _lost() -> ApiError:
    return ApiError(500, f"The stream can't go on: {LOST}")
