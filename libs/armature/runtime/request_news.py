"""What becomes of a router's requests, for whoever sizes the fleet: those that are open, and the last that have ended.

Memory is bounded: open requests are bounded by the router itself, of ended ones the latest are kept. A reader that is
slower than the news is told all anew.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from armature.runtime.errors import CallerError
from armature.v1.router_pb2 import Progress, Query, RequestEvent, RequestNews, RequestsRequest

_MOST_PAST = 8192
"""Ended requests that a new reader is told, some 200 bytes each."""
_MOST_UNREAD = 65_536
_LEAST_INTERVAL_S, _MOST_INTERVAL_S = 0.05, 60.0

Now = Callable[[], float]


@dataclass(slots=True, eq=False)
class _Request:
    """One that is open, or was."""

    number: int
    model: str
    arrived_s: float
    prompt_tokens: int
    queue_s: float = 0.0
    first_token_s: float = -1.0
    cached_tokens: int = 0
    ended_s: float = -1.0
    output_tokens: int = 0

    def tell(self, kind: "RequestEvent.Kind.ValueType", now_s: float, happened_s: float) -> RequestEvent:
        """An event with all that is known by then."""
        has_token = self.first_token_s >= 0
        return RequestEvent(
            kind=kind,
            number=self.number,
            age_s=now_s - happened_s,
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            ttft_s=self.first_token_s - self.arrived_s if has_token else 0.0,
            queue_s=self.queue_s,
            decode_s=self.ended_s - self.first_token_s if has_token and self.ended_s >= 0 else 0.0,
            output_tokens=self.output_tokens,
        )


_Event = tuple["RequestEvent.Kind.ValueType", _Request, float]
"""Kind, request and when."""


@dataclass(slots=True, eq=False)
class _Reader:
    """One stream; `unread` is None if too much has happened for it since it last looked."""

    model: str
    unread: list[_Event] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class RequestLog:
    """Is told by the router what happens, by owner (a gateway's stream) and request id; unknown ids are ignored."""

    def __init__(self, now_s: Now = time.monotonic) -> None:
        self._now_s = now_s
        self._numbers = itertools.count(1)
        self._open: dict[tuple[str, str], _Request] = {}
        self._past: deque[_Request] = deque(maxlen=_MOST_PAST)
        self._readers: set[_Reader] = set()

    # --- from the router

    def arrived(self, owner: str, query: Query) -> None:
        """A request has come; what is open under its id has ended then."""
        self._end(owner, query.request_id)
        now_s = self._now_s()
        request = _Request(next(self._numbers), query.model, now_s, query.prompt_tokens)
        self._open[owner, query.request_id] = request
        self._note(RequestEvent.KIND_ARRIVED, request, now_s)

    def placed(self, owner: str, request_id: str, waited_s: float) -> None:
        """It has a worker."""
        request = self._open.get((owner, request_id))
        if request is not None:
            request.queue_s = waited_s

    def progressed(self, owner: str, progress: Progress) -> None:
        """It has its first token, or has ended."""
        request = self._open.get((owner, progress.request_id))
        if request is None:
            return
        if progress.kind == Progress.KIND_FIRST_TOKEN:
            if request.first_token_s < 0:
                at_s = max(self._now_s() - progress.age_s, request.arrived_s)
                request.first_token_s, request.cached_tokens = at_s, progress.cached_tokens
                self._note(RequestEvent.KIND_FIRST_TOKEN, request, at_s)
        elif progress.kind == Progress.KIND_FINISHED:
            self._end(owner, progress.request_id, progress.output_tokens, progress.age_s)

    def refused(self, owner: str, request_id: str) -> None:
        """Nobody takes it."""
        self._end(owner, request_id)

    def forget(self, owner: str) -> None:
        """All that are open of this owner have ended: it is gone."""
        for request_id in [request_id for holder, request_id in self._open if holder == owner]:
            self._end(owner, request_id)

    def _end(self, owner: str, request_id: str, output_tokens: int = 0, age_s: float = 0.0) -> None:
        request = self._open.pop((owner, request_id), None)
        if request is None:
            return
        began_s = max(request.arrived_s, request.first_token_s)
        request.ended_s, request.output_tokens = max(self._now_s() - age_s, began_s), output_tokens
        has_token = request.first_token_s >= 0
        if has_token:
            self._past.append(request)
        self._note(RequestEvent.KIND_FINISHED if has_token else RequestEvent.KIND_FAILED, request, request.ended_s)

    def _note(self, kind: "RequestEvent.Kind.ValueType", request: _Request, at_s: float) -> None:
        for reader in self._readers:
            if reader.unread is not None and reader.model in ("", request.model):
                reader.unread.append((kind, request, at_s))
                if len(reader.unread) > _MOST_UNREAD:
                    reader.unread = None
                reader.changed.set()

    # --- to readers

    async def stream(self, request: RequestsRequest) -> AsyncIterator[RequestNews]:
        """What the contract says.

        Raises:
            CallerError: the interval is out of its range.
        """
        if not 0 <= request.min_interval_s <= _MOST_INTERVAL_S:  # also refuses NaN
            raise CallerError(f"min_interval_s is {request.min_interval_s}; it must be from 0 to {_MOST_INTERVAL_S:g}")
        reader = _Reader(request.model)
        self._readers.add(reader)
        try:
            while True:
                news = self._take(reader)
                yield news
                await asyncio.sleep(max(request.min_interval_s, _LEAST_INTERVAL_S))
                await reader.changed.wait()
        finally:
            self._readers.discard(reader)

    def _take(self, reader: _Reader) -> RequestNews:
        now_s = self._now_s()
        reader.changed.clear()
        if reader.unread is None:
            reader.unread = []
            return RequestNews(reset=True, events=self._everything(reader.model, now_s))
        events, reader.unread = reader.unread, []
        return RequestNews(events=[request.tell(kind, now_s, at_s) for kind, request, at_s in events])

    def _everything(self, model: str, now_s: float) -> list[RequestEvent]:
        """In the order in which they came: those that have ended, and those that are open."""
        wanted = [one for one in (*self._past, *self._open.values()) if model in ("", one.model)]
        told: list[RequestEvent] = []
        for one in sorted(wanted, key=lambda one: one.number):
            if one.ended_s >= 0:
                told.append(one.tell(RequestEvent.KIND_PAST, now_s, one.arrived_s))
                continue
            told.append(one.tell(RequestEvent.KIND_ARRIVED, now_s, one.arrived_s))
            if one.first_token_s >= 0:
                told.append(one.tell(RequestEvent.KIND_FIRST_TOKEN, now_s, one.first_token_s))
        return told
