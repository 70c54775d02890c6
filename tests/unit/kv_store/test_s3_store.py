"""Blocks in a real S3 server: what is written is read, what is wrong is refused, what nobody wants goes."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from armature.kv_store.lower_store import Block, Problem
from armature.kv_store.s3_store import Layout, S3BlockStore
from tests.support.eventually import eventually
from tests.support.offloading import content, digest
from tests.support.s3 import S3Server, s3_server

BLOCK_BYTES = 4096
GOOD = [None]


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Server]:
    async with s3_server(tmp_path_factory.mktemp("s3") / "data") as found:
        yield found


class Keeper:
    """A store with what looks after it, and the blocks that it had adopted: at most `room`."""

    def __init__(self, store: S3BlockStore, room: int) -> None:
        self.store = store
        self.adopted: list[bytes] = []
        self._room = room

    def adopt(self, digests: Sequence[bytes]) -> Sequence[bytes]:
        new = [one for one in digests if one not in self.adopted][: self._room - len(self.adopted)]
        self.adopted += new
        return new

    async def write(self, *numbers: int) -> list[Problem | None]:
        return await self.store.write([Block(digest(one), 0, memoryview(content(one, BLOCK_BYTES))) for one in numbers])

    async def read(self, number: int) -> Problem | None:
        data = bytearray(BLOCK_BYTES)
        (problem,) = await self.store.read([Block(digest(number), 0, memoryview(data))])
        assert (problem is None) == (data == content(number, BLOCK_BYTES))
        assert problem is None or not any(data), "nothing wrong gets into the pool"
        return problem


@asynccontextmanager
async def keeper(
    server: S3Server, namespace: str, node: str = "one", *, room: int = 100, ttl_s: float = 3600.0, layout: bytes = b"l"
) -> AsyncIterator[Keeper]:
    store = S3BlockStore(server.client(), Layout(namespace, layout, BLOCK_BYTES, node), ttl_s=ttl_s)
    found = Keeper(store, room)
    assert await store.found() == {}
    keeping = asyncio.create_task(store.keep(found.adopt))
    try:
        yield found
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await store.close()


def files(server: S3Server, namespace: str) -> dict[str, Path]:
    """Objects by `node/first digits`."""
    found = [path for path in server.objects() if f"/{namespace}/" in str(path) and len(path.name) == 32]
    return {f"{path.parent.name}/{int.from_bytes(bytes.fromhex(path.name[:16]), 'little')}": path for path in found}


async def test_many_blocks_come_back_and_go(server: S3Server) -> None:
    async with keeper(server, "many") as one:
        assert await one.write(*range(200)) == GOOD * 200
        assert [await one.read(number) for number in range(0, 200, 7)] == GOOD * 29
        assert await one.read(999) is Problem.MISSING
        one.store.let_go([digest(number) for number in range(150)])
        await eventually(lambda: len(files(server, "many")) == 50)
        await one.store.forget([digest(number) for number in range(150, 190)])
        assert sorted(files(server, "many")) == sorted(f"one/{number}" for number in range(190, 200))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "another"])
async def test_what_is_not_the_block_is_refused(server: S3Server, damage: str) -> None:
    async with keeper(server, damage) as one:
        await one.write(1, 2)
        paths = files(server, damage)
        client, held = server.client(), paths["one/1"].read_bytes()
        wrong = {
            "flipped": held[:1000] + bytes([held[1000] ^ 1]) + held[1001:],
            "truncated": held[: len(held) // 2],
            "longer": held + b"x",
            "another": paths["one/2"].read_bytes(),
        }[damage]
        path = str(paths["one/1"].relative_to(server.folder / "tests"))
        await client.put(path, wrong)
        assert await one.read(1) is Problem.DAMAGED
        await client.put(path, held)
        assert await one.read(1) is None


async def test_what_is_written_again_outlives_what_was_let_go(server: S3Server) -> None:
    async with keeper(server, "again") as one:
        for _ in range(20):
            await one.write(1)
            one.store.let_go([digest(1)])
            assert await one.write(1) == GOOD
            assert await one.read(1) is None
        one.store.let_go([digest(1)])
        await asyncio.sleep(0)
        assert await one.write(1) == GOOD
        assert await one.read(1) is None


async def test_a_restart_finds_its_own_blocks_before_those_of_others(server: S3Server) -> None:
    async with keeper(server, "found") as one, keeper(server, "found", "two") as two:
        await one.write(1, 2, 3)
        await two.write(3, 4, 5)
    async with keeper(server, "found", "two", room=4) as again:
        await eventually(lambda: len(again.adopted) == 4)
        assert set(again.adopted) > {digest(number) for number in (3, 4, 5)}
        others = [number for number in (1, 2) if digest(number) in again.adopted]
        assert await again.read(others[0]) is None, "one's block is read where one has it"
        again.store.let_go([digest(others[0]), digest(3)])
        await eventually(lambda: "two/3" not in files(server, "found"))
        assert {"one/1", "one/2", "one/3"} <= files(server, "found").keys(), "nobody deletes another's"


async def test_blocks_of_another_layout_are_not_found(server: S3Server) -> None:
    async with keeper(server, "layouts", layout=b"old") as old:
        await old.write(1)
    async with keeper(server, "layouts", layout=b"new") as new:
        assert await new.read(1) is Problem.MISSING
        await new.write(2)
    async with keeper(server, "layouts", layout=b"new") as again:
        await eventually(lambda: again.adopted)
        assert again.adopted == [digest(2)]


async def test_what_was_cut_off_is_not_found(server: S3Server) -> None:
    async with keeper(server, "cut") as one:
        await one.write(1, 2)
    (path,) = [path for name, path in files(server, "cut").items() if name == "one/1"]
    await server.client().put(str(path.relative_to(server.folder / "tests")), path.read_bytes()[:100])
    async with keeper(server, "cut") as again:
        await eventually(lambda: again.adopted == [digest(2)])


async def test_old_blocks_of_everybody_go_and_nothing_else(server: S3Server) -> None:
    async with keeper(server, "old", "gone", layout=b"any") as gone:
        await gone.write(1, 2)
    old = time.time() - 7200
    for name, path in files(server, "old").items():
        if name.endswith("1"):
            os.utime(path, (old, old))
    foreign = server.folder / "tests" / "armature" / "old" / "kv" / "readme.txt"
    foreign.write_text("not a block")
    os.utime(foreign, (old, old))
    await server.restart()
    async with keeper(server, "old", layout=b"new") as one:
        await eventually(lambda: [name for name in files(server, "old") if name.startswith("gone")] == ["gone/2"])
        assert foreign.exists()
        assert not one.adopted


async def test_a_store_that_is_away_is_told_and_works_when_it_is_back(tmp_path: Path) -> None:
    async with s3_server(tmp_path / "data") as server, keeper(server, "away") as one:
        await one.write(1, 2)
        await server.kill()
        assert await one.write(3, 4) == [Problem.AWAY] * 2
        assert await one.read(1) is Problem.AWAY
        one.store.let_go([digest(2)])
        await one.store.forget([digest(9)])
        await server.start()

        async def is_back() -> bool:
            return await one.write(3) == GOOD

        await eventually(is_back)
        assert await one.read(1) is None
        await eventually(lambda: sorted(files(server, "away")) == ["one/1", "one/3"], what="what was let go went later")


async def test_a_start_while_the_store_is_away_finds_blocks_later(tmp_path: Path) -> None:
    async with s3_server(tmp_path / "data") as server:
        async with keeper(server, "later") as one:
            await one.write(1)
        await server.kill()
        async with keeper(server, "later") as again:
            assert await again.read(1) is Problem.AWAY
            await server.start()
            await eventually(lambda: again.adopted == [digest(1)])
