"""What routers tell of requests, and what a planner's observer makes of it."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from armature.planning.fleet import Fleet
from armature.planning.observer import Observer
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import CallerError
from armature.runtime.request_news import RequestLog
from armature.steering.requests import RequestFeed
from armature.v1.router_pb2 import Progress, Query, RequestEvent, RequestNews, RequestsRequest

FIRST, FINISHED = Progress.KIND_FIRST_TOKEN, Progress.KIND_FINISHED


class World:
    """A router's log and a planner's feed by one clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.log = RequestLog(lambda: self.now_s)
        self.observer = Observer(100.0)
        self.feed = RequestFeed(self.observer, "", ChannelPool(), lambda: self.now_s)

    def ask(self, request_id: str, prompt_tokens: int = 100, owner: str = "g", model: str = "m") -> None:
        self.log.arrived(owner, Query(request_id=request_id, model=model, prompt_tokens=prompt_tokens))

    def progress(self, request_id: str, kind: "Progress.Kind.ValueType", *, age_s: float = 0.0, **fields: int) -> None:
        self.log.progressed("g", Progress(request_id=request_id, kind=kind, age_s=age_s, **fields))

    def stream(self, model: str = "") -> AsyncIterator[RequestNews]:
        return self.log.stream(RequestsRequest(model=model))


def kinds(news: RequestNews) -> list[tuple[int, int]]:
    return [(event.kind, event.number) for event in news.events]


async def test_a_request_is_told_from_its_coming_to_its_end() -> None:
    world = World()
    async with aclosing(world.stream()) as stream:  # pyright: ignore
        world.feed.take("r", await anext(stream))
        world.ask("a")
        world.log.placed("g", "a", 0.25)
        world.now_s = 101.0
        world.progress("a", FIRST, cached_tokens=40)
        world.now_s = 103.0
        world.progress("a", FINISHED, output_tokens=5)
        news = await anext(stream)
        assert kinds(news) == [
            (RequestEvent.KIND_ARRIVED, 1),
            (RequestEvent.KIND_FIRST_TOKEN, 1),
            (RequestEvent.KIND_FINISHED, 1),
        ]
        world.feed.take("r", news)
    seen = world.observer.take(103.0, Fleet())
    assert (seen.num_arrivals, seen.in_flight, seen.failures, seen.unanswered_tokens) == (1, 0, 0, 0)
    assert seen.ttft_s.quantile(0.5) == pytest.approx(1.0, rel=0.03)
    assert seen.queue_s.quantile(0.5) == pytest.approx(0.25, rel=0.03)
    assert seen.itl_s.quantile(0.5) == pytest.approx(0.5, rel=0.03)
    assert [column.tolist() for column in seen.arrivals] == [[100.0], [60.0], [40.0], [5.0]]


async def test_progress_counts_from_when_it_was_made_and_not_from_when_it_was_told() -> None:
    world = World()
    async with aclosing(world.stream()) as stream:  # pyright: ignore
        await anext(stream)
        world.ask("a")
        world.ask("b")
        world.now_s = 101.0
        world.progress("a", FIRST, age_s=0.75)
        world.progress("a", FINISHED, age_s=0.25)
        world.progress("b", FIRST, age_s=64.0)  # before it came, by a clock that jumps
        _, _, a_first, a_end, b_first = (await anext(stream)).events
    assert (a_first.age_s, a_first.ttft_s) == (0.75, 0.25)
    assert (a_end.age_s, a_end.decode_s) == (0.25, 0.5)
    assert (b_first.age_s, b_first.ttft_s) == (1.0, 0.0)


async def test_a_late_reader_is_told_what_was_and_what_is_open() -> None:
    world = World()
    for name in ("done", "answering", "waiting"):
        world.ask(name)
    world.progress("done", FIRST)
    world.progress("answering", FIRST)
    world.progress("done", FINISHED, output_tokens=7)
    world.now_s = 110.0
    async with aclosing(world.stream()) as stream:  # pyright: ignore
        news = await anext(stream)
    assert news.reset and kinds(news) == [
        (RequestEvent.KIND_PAST, 1),
        (RequestEvent.KIND_ARRIVED, 2),
        (RequestEvent.KIND_FIRST_TOKEN, 2),
        (RequestEvent.KIND_ARRIVED, 3),
    ]
    assert {event.age_s for event in news.events} == {10.0}
    world.feed.take("r", news)
    seen = world.observer.take(110.0, Fleet())
    assert (seen.in_flight, seen.unanswered_tokens, seen.arrivals.num_requests) == (2, 100, 3)


async def test_a_stream_that_breaks_and_comes_back_counts_nothing_twice() -> None:
    world = World()
    world.ask("a")
    for _ in range(2):
        async with aclosing(world.stream()) as stream:  # pyright: ignore
            world.feed.take("r", await anext(stream))
    seen = world.observer.take(101.0, Fleet())
    assert (seen.num_arrivals, seen.in_flight, seen.arrivals.num_requests) == (1, 1, 1)


async def test_what_was_refused_or_lost_its_gateway_has_failed_or_ended() -> None:
    world = World()
    async with aclosing(world.stream()) as stream:  # pyright: ignore
        world.feed.take("r", await anext(stream))
        world.ask("refused")
        world.log.refused("g", "refused")
        world.ask("left")
        world.log.forget("g")
        world.log.refused("g", "nobody knows it")
        world.feed.take("r", await anext(stream))
    seen = world.observer.take(101.0, Fleet())
    assert (seen.failures, seen.in_flight, seen.unanswered_tokens) == (2, 0, 0)


async def test_the_same_id_again_is_another_request() -> None:
    world = World()
    async with aclosing(world.stream()) as stream:  # pyright: ignore
        world.feed.take("r", await anext(stream))
        world.ask("a")
        world.ask("a")
        world.feed.take("r", await anext(stream))
    assert world.observer.take(101.0, Fleet()).in_flight == 1


async def test_other_models_are_not_told() -> None:
    world = World()
    world.ask("a", model="other")
    async with aclosing(world.stream("m")) as stream:  # pyright: ignore
        assert not (await anext(stream)).events


async def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(CallerError, match="min_interval_s"):
        await anext(World().log.stream(RequestsRequest(min_interval_s=float("nan"))))
