"""Routers' news of requests, told to a planner's observer. A request counts once, whichever router has it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from armature.planning.observer import Observer
from armature.runtime.channels import ChannelPool
from armature.v1.common_pb2 import Member
from armature.v1.router_pb2 import RequestEvent, RequestNews, RequestsRequest
from armature.v1.router_pb2_grpc import RouterStub

_INTERVAL_S = 0.5
"""Between two messages of a router."""


@dataclass(slots=True)
class _Open:
    prompt_tokens: int
    has_token: bool = False


class RequestFeed:
    """The observer hears of requests by `read`, which is a stream's reader for `MemberStreams`."""

    def __init__(
        self, observer: Observer, model: str, channels: ChannelPool, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._channels = channels
        self._observer = observer
        self._model = model
        self._now_s = now_s
        self.on_arrival: Callable[[], None] = lambda: None
        """Is told when a request has come."""
        self._open: dict[str, dict[int, _Open]] = {}
        """By router and the request's number there."""
        self._told: dict[str, int] = {}
        """The last number of each router whose coming was counted: a stream that is opened again repeats."""

    async def read(self, member: Member, has_read: Callable[[], None]) -> None:
        """Follow a router until its stream breaks; what it had open then counts no more."""
        key = f"{member.id}/{member.epoch}"
        call = RouterStub(self._channels.get(member.address)).Requests(
            RequestsRequest(min_interval_s=_INTERVAL_S, model=self._model)
        )
        try:
            while isinstance(news := await call.read(), RequestNews):
                self.take(key, news)
                has_read()
        finally:
            call.cancel()
            self._drop(key)

    def take(self, router: str, news: RequestNews) -> None:
        """Tell the observer of one message."""
        if news.reset:
            self._drop(router)
        now_s, requests = self._now_s(), self._open.setdefault(router, {})
        for event in news.events:
            at_s = now_s - event.age_s
            if event.kind == RequestEvent.KIND_PAST:
                if self._is_new(router, event.number):
                    self._observer.recall(at_s, event.prompt_tokens, event.cached_tokens, event.output_tokens)
            elif event.kind == RequestEvent.KIND_ARRIVED:
                requests[event.number] = _Open(event.prompt_tokens)
                self._observer.arrive(at_s, event.prompt_tokens, is_known=not self._is_new(router, event.number))
                self.on_arrival()
            elif (request := requests.get(event.number)) is not None:
                self._progress(event, requests, request)

    def _progress(self, event: RequestEvent, requests: dict[int, _Open], request: _Open) -> None:
        observer = self._observer
        if event.kind == RequestEvent.KIND_FIRST_TOKEN:
            request.has_token = True
            observer.first_token(event.ttft_s, request.prompt_tokens, event.queue_s)
            return
        del requests[event.number]
        if event.kind == RequestEvent.KIND_FINISHED:
            observer.finish(request.prompt_tokens, event.cached_tokens, event.output_tokens, event.decode_s)
        else:
            observer.fail(request.prompt_tokens, has_token=request.has_token)

    def _is_new(self, router: str, number: int) -> bool:
        is_new = number > self._told.get(router, 0)
        if is_new:
            self._told[router] = number
        return is_new

    def _drop(self, router: str) -> None:
        """We hear no more of what is open there."""
        for request in self._open.pop(router, {}).values():
            self._observer.lose(request.prompt_tokens, has_token=request.has_token)
