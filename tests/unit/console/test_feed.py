"""One picture for all who watch, and none while nobody does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from armature.console.feed import MAX_PENDING, MAX_WATCHERS, CrowdedError, Feed, Look
from armature.console.picture import Picture, Seen
from armature.console.shapes import Cell
from armature.console.traffic import Traffic
from armature.v1.common_pb2 import Member
from tests.support.eventually import eventually


class Cellar:
    """A cell in which a gateway comes with every look."""

    def __init__(self) -> None:
        self.open = self.looks = 0
        self.fails = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Look]:
        self.open += 1
        try:
            yield self.look
        finally:
            self.open -= 1

    async def look(self) -> Cell:
        self.looks += 1
        if self.fails:
            raise ValueError("what a member tells makes no sense")
        members = [Member(id=f"gateway-{number}", kind="gateway") for number in range(self.looks)]
        picture = Picture(gateway_id="gateway-0", namespace="test", version="1")
        return picture.draw(Seen(wall_s=float(self.looks), members=members))


@pytest.fixture
def cellar() -> Cellar:
    return Cellar()


@pytest.fixture
async def feed(cellar: Cellar) -> AsyncIterator[Feed]:
    made = Feed(cellar.opened, Traffic((1.0,), (1.0,)), asyncio.ensure_future, interval_s=0.01)
    yield made
    made.close()
    await eventually(lambda: cellar.open == 0)


async def told(watch: Any) -> dict[str, Any]:
    async with asyncio.timeout(10):
        return json.loads(await anext(watch))


async def test_nothing_is_asked_while_nobody_watches(feed: Feed, cellar: Cellar) -> None:
    await asyncio.sleep(0.05)
    assert cellar.looks == 0
    async with aclosing(feed.watch()) as watch:
        await told(watch)
        assert cellar.open == 1
    await eventually(lambda: cellar.open == 0)
    looks = cellar.looks
    await asyncio.sleep(0.05)
    assert cellar.looks == looks


async def test_everything_comes_first_then_what_changes(feed: Feed) -> None:
    async with aclosing(feed.watch()) as watch:
        first, second = await told(watch), await told(watch)
    assert first["type"] == "cell"
    assert list(first["cell"]["gateways"]) == ["gateway-0"]
    assert second["type"] == "change"
    assert list(second["patch"]["gateways"]) == ["gateway-1"]


async def test_all_watch_the_same_picture(feed: Feed, cellar: Cellar) -> None:
    async with aclosing(feed.watch()) as one, aclosing(feed.watch()) as other:
        await told(one)
        await told(other)
        assert cellar.open == 1
        async with aclosing(feed.watch()) as late:
            assert (await told(late))["type"] == "cell"


async def test_a_slow_watcher_gets_everything_again(feed: Feed, cellar: Cellar) -> None:
    async with aclosing(feed.watch()) as watch:
        await told(watch)
        await eventually(lambda: cellar.looks > MAX_PENDING + 3)
        again = await told(watch)
    assert again["type"] == "cell"
    assert len(again["cell"]["gateways"]) > MAX_PENDING


async def test_so_many_may_watch_and_no_more(feed: Feed) -> None:
    watches = [feed.watch() for _ in range(MAX_WATCHERS)]
    await asyncio.gather(*(told(watch) for watch in watches))
    with pytest.raises(CrowdedError):
        await anext(feed.watch())
    for watch in watches:
        await watch.aclose()
    assert feed.watchers == 0


async def test_a_picture_that_cannot_be_drawn_ends_the_watching_and_nothing_else(feed: Feed, cellar: Cellar) -> None:
    cellar.fails = True
    assert [picture async for picture in feed.watch()] == []
    cellar.fails = False
    async with aclosing(feed.watch()) as watch:
        assert (await told(watch))["type"] == "cell"


async def test_closing_lets_all_go(feed: Feed) -> None:
    async with aclosing(feed.watch()) as watch:
        await told(watch)
        feed.close()
        async with asyncio.timeout(10):
            assert len([picture async for picture in watch]) <= MAX_PENDING
    assert [picture async for picture in feed.watch()] == []
