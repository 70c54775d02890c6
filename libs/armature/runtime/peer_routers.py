"""Several routers balance like one: each tells the others what it has placed, through a stream in Redis.

A decision never waits for it. What was placed is told within the same turn of the event loop, in one round trip for
all of the turn, and counts with the others as if they had placed it themselves. While Redis is away the others know of
it only once the worker's load report shows it; so it is with what is told of a request that began before they listened.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import Counter

from armature.index.packing import pack_hashes, unpack_hashes
from armature.routing.account import Share
from armature.routing.decision import Placed
from armature.routing.ledger import Entry
from armature.routing.router import RoutingCore, entry_of
from armature.runtime.backoff import Backoff
from armature.runtime.membership import MemberChange
from armature.runtime.redis_client import RedisClient, RedisUnavailableError
from armature.v1.router_pb2 import PeerNews, Progress, Reservation

# Some minutes of a busy cell: whoever has not read for so long starts anew.
_STREAM_ENTRIES = 10_000
_STREAM_TTL_S = 3600
_READ_BLOCK_S = 1.0
_READ_ENTRIES = 200
# What can't be told for so long is of no use to anybody: load reports have shown it.
_MOST_UNTOLD = 10_000

_told = Counter("armature_router_peer_news_sent_total", "Messages to the other routers.")
_untold = Counter("armature_router_peer_news_dropped_total", "Placements and progress the others were not told of.")
_heard = Counter("armature_router_peer_reservations_total", "Placements of other routers taken into account.")


class Peers:
    """Tells and hears; `run` owns both until it is cancelled."""

    def __init__(self, core: RoutingCore, redis: RedisClient, namespace: str, own_id: str) -> None:
        self._core = core
        self._redis = redis
        self._key = f"armature:{namespace}:placements"
        self._own_id = own_id
        self._news = PeerNews(router_id=own_id, number=1)
        self._has_news = asyncio.Event()
        self.is_listening = False
        """Whether whatever the others tell from now on will be heard."""
        self._numbers: dict[str, int] = {}
        """The last message of each router that has told anything."""

    def on_change(self, change: MemberChange) -> None:
        """A router has come, changed or left; what one that has left had placed is forgotten."""
        if change.kind == "left":
            self._core.forget(_owner(change.member.id))
            self._numbers.pop(change.member.id, None)

    def placed(self, outcome: Placed) -> None:
        """This router has placed a request."""
        query = outcome.judgement.snapshot.query
        request_id = _shared_id(query.owner, query.request_id)
        self._tell(reservation=_reservation(request_id, entry_of(outcome.judgement), query.session_id))

    def progressed(self, owner: str, request_id: str, kind: "Progress.Kind.ValueType") -> None:
        """A request that this router has placed has its first token, or has ended."""
        self._tell(progress=Progress(request_id=_shared_id(owner, request_id), kind=kind))

    def _tell(self, reservation: Reservation | None = None, progress: Progress | None = None) -> None:
        news = self._news
        if len(news.reservations) + len(news.progress) >= _MOST_UNTOLD:
            _untold.inc()
            return
        if reservation is not None:
            news.reservations.append(reservation)
        if progress is not None:
            news.progress.append(progress)
        self._has_news.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._send(), name="peer news out")
            tasks.create_task(self._listen(), name="peer news in")

    async def _send(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            news, self._news = self._news, PeerNews(router_id=self._own_id, number=self._news.number + 1)
            try:
                await self._redis.call_all(
                    [
                        ("XADD", self._key, "MAXLEN", "~", _STREAM_ENTRIES, "*", b"news", news.SerializeToString()),
                        ("EXPIRE", self._key, _STREAM_TTL_S),
                    ]
                )
                _told.inc()
            except RedisUnavailableError:
                _untold.inc(len(news.reservations) + len(news.progress))

    async def _listen(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._follow(backoff)
            except RedisUnavailableError:
                self.is_listening = False
                self._forget_all()
                await asyncio.sleep(backoff.next_s())

    async def _follow(self, backoff: Backoff) -> None:
        newest = await self._redis.call("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        last_id: bytes = newest[0][0] if newest else b"0-0"
        self.is_listening = True
        while True:
            answer = await self._redis.call(
                "XREAD", "COUNT", _READ_ENTRIES, "BLOCK", int(_READ_BLOCK_S * 1000), "STREAMS", self._key, last_id,
                timeout_s=_READ_BLOCK_S + 1.0,
            )  # fmt: skip
            backoff.reset()
            for entry_id, fields in _entries(answer):
                last_id = entry_id
                self._hear(PeerNews.FromString(fields[1]))

    def _hear(self, news: PeerNews) -> None:
        if news.router_id == self._own_id:
            return
        owner, now_s, core = _owner(news.router_id), time.monotonic(), self._core
        if news.number != self._numbers.get(news.router_id, 0) + 1:
            # The end of a request may be among what was missed; load reports show what is really there.
            core.forget(owner)
        self._numbers[news.router_id] = news.number
        for told in news.reservations:
            core.adopt(owner, told.request_id, _entry(told, now_s), told.session_id)
            _heard.inc()
        for progress in news.progress:
            if progress.kind == Progress.KIND_FIRST_TOKEN:
                core.first_token(owner, progress.request_id)
            elif progress.kind == Progress.KIND_FINISHED:
                core.finish(owner, progress.request_id)

    def _forget_all(self) -> None:
        for router_id in self._numbers:
            self._core.forget(_owner(router_id))
        self._numbers.clear()


def _owner(router_id: str) -> str:
    return f"router {router_id}"


def _shared_id(owner: str, request_id: str) -> str:
    """Unique among all requests of one router."""
    return f"{owner}/{request_id}"


def _entries(answer: Any) -> Sequence[tuple[bytes, Sequence[bytes]]]:
    """What XREAD has read of its one stream."""
    return answer[0][1] if answer else ()


def _reservation(request_id: str, entry: Entry, session_id: str) -> Reservation:
    own, remote = entry.share, entry.prefill_share
    made = Reservation(
        request_id=request_id, session_id=session_id, worker_id=entry.worker_id, work=_work(own),
        prefill_worker_id=entry.prefill_id, sequence_hashes=pack_hashes(entry.hashes),
        uncached_tokens=entry.uncached_tokens, has_tail=entry.has_tail, tenant=entry.tenant,
    )  # fmt: skip
    if remote is not None:
        made.prefill_work.CopyFrom(_work(remote))
    return made


def _work(share: Share) -> Reservation.Work:
    return Reservation.Work(
        prefill_s=share.prefill_s, tokens=share.tokens, cached_tokens=share.cached_tokens, blocks=share.blocks
    )


def _entry(told: Reservation, now_s: float) -> Entry:
    remote = _share(told.prefill_work, now_s) if told.prefill_worker_id else None
    return Entry(
        told.worker_id, _share(told.work, now_s), told.prefill_worker_id, remote, unpack_hashes(told.sequence_hashes),
        told.uncached_tokens, told.has_tail, tenant=told.tenant,
    )  # fmt: skip


def _share(work: Reservation.Work, now_s: float) -> Share:
    return Share(now_s, work.prefill_s, work.tokens, work.cached_tokens, work.blocks)
