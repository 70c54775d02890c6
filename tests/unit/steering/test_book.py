"""Targets and log of the planners of a cell, in a real etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from armature.runtime.etcd import EtcdClient
from armature.steering import book as book_module
from armature.steering.book import Book
from armature.v1.planner_pb2 import LogEntry, PlannerTargets
from tests.support.etcd import EtcdServer
from tests.support.eventually import eventually

PREFIX = "/armature/~own/b/planner/book/"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(tmp_path / "server")
    await server.start()
    yield server
    await server.kill()


@asynccontextmanager
async def opened(server: EtcdServer, planner: str) -> AsyncIterator[Book]:
    client = EtcdClient([server.address], timeout_s=1.0)
    book = Book(client, PREFIX, planner)
    following = asyncio.create_task(book.run())
    try:
        yield book
    finally:
        following.cancel()
        await asyncio.wait({following})
        await client.close()


def texts(book: Book, limit: int = 100) -> list[str]:
    return [entry.text for entry in book.entries(limit)]


async def test_two_planners_write_one_log_and_nobody_overwrites(server: EtcdServer) -> None:
    async with opened(server, "a") as first, opened(server, "b") as second:
        for number in range(3):
            for book, name in ((first, "a"), (second, "b")):
                book.note(LogEntry(kind=LogEntry.KIND_NEWS, text=f"{name}{number}"))

        async def both_know() -> bool:
            await asyncio.gather(first.flush(), second.flush())
            return len(texts(first)) == len(texts(second)) == 6 and texts(first) == texts(second)

        await eventually(both_know)
        entries = first.entries(100)
        assert [entry.number for entry in entries] == [1, 2, 3, 4, 5, 6]
        assert sorted(entry.text for entry in entries) == ["a0", "a1", "a2", "b0", "b1", "b2"]
        assert {entry.planner for entry in entries} == {"a", "b"} and all(entry.at_s for entry in entries)
        assert [entry.number for entry in first.entries(2)] == [5, 6]
        assert [entry.number for entry in first.entries(100, after=4)] == [5, 6]


async def test_the_log_is_bounded(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "KEPT", 3)
    async with opened(server, "a") as book:
        for number in range(6):
            book.note(LogEntry(text=str(number)))
            await book.flush()
        await eventually(lambda: texts(book) == ["3", "4", "5"])


async def test_entries_wait_while_etcd_is_away(server: EtcdServer) -> None:
    async with opened(server, "a") as book:
        book.note(LogEntry(text="before"))
        await book.flush()
        await eventually(lambda: texts(book) == ["before"])
        await server.kill()
        book.note(LogEntry(text="meanwhile"))
        await book.flush()
        assert texts(book) == ["before", "meanwhile"]
        await server.start()

        async def is_written() -> bool:
            await book.flush()
            return [entry.number for entry in book.entries(10)] == [1, 2]

        await eventually(is_written)


async def test_targets_that_one_sets_all_are_told(server: EtcdServer) -> None:
    async with opened(server, "a") as first, opened(server, "b") as second:
        told: list[float] = []

        def on_targets() -> None:
            assert second.targets is not None
            told.append(second.targets.ttft_s)

        second.on_targets = on_targets
        assert first.targets is None
        await first.set_targets(PlannerTargets(ttft_s=0.5))
        await eventually(lambda: told == [0.5])
