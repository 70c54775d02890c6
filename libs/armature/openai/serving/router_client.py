"""Asks a router where requests go, over one multiplexed stream per router.

Several routers: this gateway has its favourite (so that gateways spread over routers), and goes on to the next when it
fails. None can be asked: the gateway decides itself, see `local_router`. A router hears at once of a request that
nobody waits for any more, be it placed or in its queue.

Routers take streams on a port of their own, which costs them less than the one for all of gRPC. Where that can't be
reached, behind a firewall that was not told of it, the other serves until it can.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple, Protocol

from armature.openai.serving.frames import FrameStream
from armature.openai.serving.local_router import LocalRouter
from armature.openai.serving.metrics import ROUTED_LOCALLY, ROUTER_FALLBACKS
from armature.openai.serving.options import ServingOptions
from armature.runtime.addresses import split_host_port
from armature.runtime.channels import ChannelPool
from armature.runtime.lean_call import CONNECT_TIMEOUT_S, Method
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member, ServingInfo
from armature.v1.router_pb2 import Placement, Progress, Query, RouteRequest, RouteResponse

log = logging.getLogger(__name__)

ROUTE = "/armature.v1.Router/Route"
PROGRESS_PAUSE_S, URGENT_PROGRESS_PAUSE_S = 0.025, 0.005
"""Progress waits so long for more of it, or for a query, to share a message with; less while a query waits for its
answer, which may be just this.

A plan is no worse for it: what this gateway asks takes along what it has to tell, and other gateways' plans see half of
what the workers' own reports take, which come every 50 ms at best. A message costs the router as much as a query, and
wakes both sides, which under little load is most of what they do. Times are told by `age_s`.
"""


LAST_WORDS_S = 1.0
"""In which the last progress leaves a stream that is not used any more."""


class Ledger(Protocol):
    """Whoever placed a request and wants to know what becomes of it."""

    def first_token(self, request_id: str, info: ServingInfo) -> None: ...
    def finished(self, request_id: str, output_tokens: int) -> None: ...


class RouterClient:
    """Where requests go."""

    def __init__(
        self, own_id: str, channels: ChannelPool, tasks: asyncio.TaskGroup, local: LocalRouter, options: ServingOptions
    ) -> None:
        self._own_id = own_id
        self._channels = channels
        self._tasks = tasks
        self._local = local
        self._options = options
        self._routers: dict[str, Member] = {}
        self._streams: dict[str, _RouterStream] = {}
        self._retry_at_s: dict[str, float] = {}
        self._blocked: set[str] = set()
        """Routers whose ports for streams could not be reached when they were last tried."""
        self._now_s = asyncio.get_running_loop().time

    def member_changed(self, change: MemberChange) -> None:
        """A router has come, changed or left; other kinds are ignored."""
        member = change.member
        if member.kind != "router":
            return
        if change.kind == "left":
            self._routers.pop(member.id, None)
            self._retry_at_s.pop(member.id, None)
            self._blocked.discard(member.id)
            if stream := self._streams.pop(member.id, None):
                stream.stop()
        else:
            self._routers[member.id] = member

    async def place(self, query: Query, due_s: float = math.inf) -> tuple[Placement, Ledger]:
        """A placement and who keeps its account. Always answers, after at most `route_timeout_s` per router, or as much
        after the time within which a router that has the request wait promises to decide.

        Raises:
            TimeoutError: it is `due_s`, as the event loop counts, and there is none.
        """
        patience_s = self._options.route_timeout_s
        for router, stream in self._ways():
            limit = asyncio.timeout_at(min(self._now_s() + patience_s, due_s))
            try:
                async with limit:

                    def extend(within_s: float, limit: asyncio.Timeout = limit) -> None:
                        if not limit.expired():
                            limit.reschedule(min(self._now_s() + within_s + patience_s, due_s))

                    return await stream.ask(query, extend), stream
            except (TimeoutError, ConnectionError) as error:
                if limit.expired() and limit.when() == due_s:
                    raise
                self._retry_at_s[router.id] = self._now_s() + self._options.router_retry_s
                log.warning("router %s could not be asked: %s", router.id, str(error) or "it did not answer in time")
        ROUTED_LOCALLY.inc()
        return self._local.place(query), self._local

    def longest_wait_s(self) -> float:
        """For how long the query that has waited longest has been without an answer; 0: none waits."""
        since_s = min([stream.waiting_since_s for stream in self._streams.values()], default=math.inf)
        return max(0.0, self._now_s() - since_s)

    def _candidates(self) -> list[Member]:
        """Routers that may be asked now, the favourite first; one that leaves is the last resort."""
        now_s = self._now_s()
        usable = [router for router in self._routers.values() if self._retry_at_s.get(router.id, 0.0) <= now_s]
        return sorted(usable, key=lambda router: (router.state == MEMBER_STATE_DRAINING, self._distance(router.id)))

    def _distance(self, router_id: str) -> bytes:
        return blake2b(f"{self._own_id}/{router_id}".encode(), digest_size=8).digest()

    def _ways(self) -> "Iterator[tuple[Member, _RouterStream]]":
        """Whom to ask, and after a failure whom to ask next."""
        for router in self._candidates():
            stream = self._stream(router)
            was_blocked = router.id in self._blocked
            yield router, stream
            if router.id in self._blocked and not was_blocked:
                self._retry_at_s.pop(router.id, None)
                yield router, self._stream(router)

    def _stream(self, router: Member) -> "_RouterStream":
        stream = self._streams.get(router.id)
        if stream is None or stream.has_ended:
            if router.id in self._blocked:
                method = self._channels.method(router.address, ROUTE)
                stream = _RouterStream(router.id, method, on_heard=lambda: _tell_of_fallback(router))
            else:
                stream = _RouterStream(router.id, self._channels.method(router.stream_address or router.address, ROUTE))
            self._streams[router.id] = stream
            self._tasks.create_task(self._run(stream, router), name=f"route stream {router.id}")
        return stream

    async def _run(self, stream: "_RouterStream", router: Member) -> None:
        if router.id in self._blocked:
            async with asyncio.TaskGroup() as both:
                looking = both.create_task(self._look(stream, router))
                await stream.run()
                looking.cancel()
            self._blocked.discard(router.id)
        else:
            await stream.run()
            if not stream.has_heard and router.stream_address not in ("", router.address):
                self._blocked.add(router.id)
        if router.id not in self._routers:
            await self._channels.discard(router.address)

    async def _look(self, stream: "_RouterStream", router: Member) -> None:
        """Return when a router's port for streams can be reached again: others than those on `stream` go there."""
        host, port = split_host_port(router.stream_address)
        while True:
            await asyncio.sleep(self._options.router_port_retry_s)
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    _, writer = await asyncio.open_connection(host, port)
                writer.close()
                break
        self._blocked.discard(router.id)
        if self._streams.get(router.id) is stream:
            del self._streams[router.id]
        stream.end_when_idle()


def _tell_of_fallback(router: Member) -> None:
    ROUTER_FALLBACKS.inc()
    log.warning("router %s is asked on %s: %s is out of reach", router.id, router.address, router.stream_address)


class _Expected(NamedTuple):
    answer: asyncio.Future[Placement]
    asked_s: float
    on_waiting: Callable[[float], None]
    """Hears within what time the answer will come, if not at once."""


class _RouterStream:
    """Queries wait here for their answers. What waits to be written is bounded by the requests that are admitted."""

    def __init__(self, router_id: str, method: Method, on_heard: Callable[[], None] | None = None) -> None:
        self._router_id = router_id
        self._on_heard = on_heard
        self._frames = FrameStream[RouteRequest, RouteResponse](
            method, RouteResponse.FromString, self._take, self._on_frames
        )
        self._ids = itertools.count(1)
        self._queries: dict[int, Query] = {}
        self._progress: list[tuple[float, Progress]] = []
        """With when it was told."""
        self._telling: asyncio.TimerHandle | None = None
        self._answers: dict[int, _Expected] = {}
        """By query, in the order of asking, until the answer comes or nobody waits for it any more."""
        self._now_s = asyncio.get_running_loop().time
        self._task: asyncio.Task[str] | None = None
        self._unfinished = 0
        """Requests that it has placed."""
        self._is_wanted = True
        self.has_heard = False
        """Whether the router has ever said anything."""
        self.has_ended = False

    @property
    def waiting_since_s(self) -> float:
        """When the oldest query without an answer was asked; infinity if there is none."""
        return next((one.asked_s for one in self._answers.values() if not one.answer.done()), math.inf)

    async def ask(self, query: Query, on_waiting: Callable[[float], None]) -> Placement:
        """The router's answer. `on_waiting` hears within what time it will come, if not at once.

        Raises:
            ConnectionError: the stream ended first.
        """
        if self.has_ended:
            raise ConnectionError("the stream has ended")
        query_id = query.query_id = next(self._ids)
        answer: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._answers[query_id] = _Expected(answer, self._now_s(), on_waiting)
        self._queries[query_id] = query
        self._frames.wake()
        try:
            placement = await answer
        except asyncio.CancelledError:
            if not answer.cancelled():
                answer.exception()  # taken notice of
            self._abandon(query_id, query.request_id)
            raise
        self._unfinished += placement.HasField("assigned")
        return placement

    def first_token(self, request_id: str, info: ServingInfo) -> None:
        progress = Progress(
            request_id=request_id,
            kind=Progress.KIND_FIRST_TOKEN,
            cached_tokens=info.cached_tokens,
            onboard_asked_tokens=info.onboard_asked_tokens,
            onboard_found_tokens=info.onboard_found_tokens,
        )
        self._tell(progress)

    def finished(self, request_id: str, output_tokens: int) -> None:
        self._unfinished -= 1
        self._tell_end(request_id, output_tokens)
        if not self._is_wanted:
            self.end_when_idle()

    def end_when_idle(self) -> None:
        """Nobody asks here any more: end when the requests that were placed have ended, and the router knows."""
        self._is_wanted = False
        if not self._unfinished and not self._answers:
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self.stop)

    def _tell_end(self, request_id: str, output_tokens: int) -> None:
        self._tell(Progress(request_id=request_id, kind=Progress.KIND_FINISHED, output_tokens=output_tokens))

    async def run(self) -> None:
        reason = "the stream was stopped"
        try:
            async with asyncio.TaskGroup() as tasks:
                self._task = tasks.create_task(self._frames.run())
            reason = reason if self._task.cancelled() else self._task.result()
        finally:
            self.has_ended = True
            log.info("the stream to router %s has ended: %s", self._router_id, reason)
            answers, self._answers = self._answers, {}
            for answer, _, _ in answers.values():
                if not answer.done():
                    answer.set_exception(ConnectionError(reason))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _abandon(self, query_id: int, request_id: str) -> None:
        """Nobody waits for this answer any more. Whether it has come, is on its way or still to be decided, the router
        hears that the request has ended."""
        self._answers.pop(query_id, None)
        if self._queries.pop(query_id, None) is None:
            self._tell_end(request_id, 0)
        if not self._is_wanted:
            self.end_when_idle()

    def _tell(self, progress: Progress) -> None:
        if not self.has_ended:  # a new stream's router knows nothing of this request
            self._progress.append((self._now_s(), progress))
            if self._telling is None:
                pause_s = URGENT_PROGRESS_PAUSE_S if self._answers else PROGRESS_PAUSE_S
                self._telling = asyncio.get_running_loop().call_later(pause_s, self._frames.wake)

    def _take(self) -> RouteRequest:
        now_s = self._now_s()
        for told_s, progress in self._progress:
            progress.age_s = now_s - told_s
        request = RouteRequest(queries=self._queries.values(), progress=[progress for _, progress in self._progress])
        self._queries.clear()
        self._progress.clear()
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        return request

    def _on_frames(self, responses: list[RouteResponse]) -> None:
        if not self.has_heard:
            self.has_heard = True
            if self._on_heard is not None:
                self._on_heard()
        for placement in [placement for response in responses for placement in response.placements]:
            if placement.HasField("waiting"):
                if placement.query_id in self._answers:
                    self._answers[placement.query_id].on_waiting(placement.waiting.within_s)
                continue
            expected = self._answers.pop(placement.query_id, None)
            if expected is not None and not expected.answer.done():
                expected.answer.set_result(placement)
