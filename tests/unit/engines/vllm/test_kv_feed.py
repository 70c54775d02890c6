"""KV events over real ZeroMQ sockets: in order, and whole even where batches were missed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from armature.blocks.events import KvEvent
from armature.blocks.hashing import BlockHasher
from armature.engines.vllm.kv_events import EventTranslator, salt_of
from armature.engines.vllm.kv_feed import KvFeed
from tests.support.eventually import eventually

HASHER = BlockHasher(b"secret", 2)
ROOT = HASHER.root("m")
END = (-1).to_bytes(8, "big", signed=True)


def payload(number: int) -> bytes:
    told = {
        "type": "BlockStored", "block_hashes": [number], "parent_block_hash": None, "token_ids": [number, 0],
        "block_size": 2, "medium": "GPU", "extra_keys": [[salt_of(ROOT)]],
    }  # fmt: skip
    return msgspec.msgpack.encode([0.0, [told], 0])


class Publisher:
    """As vLLM's: numbers batches from 0 and sends those from a number on again, if it still has them."""

    def __init__(self, folder: Path, keeps: int) -> None:
        context = zmq.asyncio.Context.instance()
        self.events, self.replays = f"ipc://{folder}/e", f"ipc://{folder}/r"
        self._socket, self._router = context.socket(zmq.PUB), context.socket(zmq.ROUTER)
        self._socket.bind(self.events)
        self._router.bind(self.replays)
        self._keeps, self._count = keeps, 0

    async def publish(self, *, lose: bool = False) -> None:
        if not lose:
            await self._socket.send_multipart([b"", self._count.to_bytes(8, "big"), payload(self._count)])
        self._count += 1

    async def replay(self) -> None:
        while True:
            peer, _, start = await self._router.recv_multipart()
            first = max(int.from_bytes(start, "big"), self._count - self._keeps)
            for number in range(first, self._count):
                await self._router.send_multipart([peer, b"", b"", number.to_bytes(8, "big"), payload(number)])
            await self._router.send_multipart([peer, b"", b"", END, b""])

    def close(self) -> None:
        self._socket.close(0)
        self._router.close(0)


@asynccontextmanager
async def following(folder: Path, keeps: int) -> AsyncIterator[tuple[Publisher, list[str]]]:
    """A publisher, and what is heard of it: `+n` for block n, `0` for a cleared cache."""
    publisher = Publisher(folder, keeps)
    names = {digest: f"+{n}" for n in range(100) for digest in HASHER.extend(ROOT, [n, 0])}
    heard: list[str] = []

    def hear(events: Sequence[KvEvent]) -> None:
        heard.extend(names[event.digests[0]] if event.digests else "0" for event in events)

    feed = KvFeed(publisher.events, publisher.replays, EventTranslator(HASHER))
    tasks = [asyncio.create_task(feed.run(hear)), asyncio.create_task(publisher.replay())]
    try:
        while not heard:  # a subscription takes a moment, and what came before it is asked for again
            await publisher.publish()
            await asyncio.sleep(0.01)
        yield publisher, heard
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        publisher.close()


async def test_batches_that_were_missed_are_replayed_in_their_place(tmp_path: Path) -> None:
    async with following(tmp_path, keeps=100) as (publisher, heard):
        for lose in (False, True, True, False):
            await publisher.publish(lose=lose)
        await eventually(lambda: len(heard) == publisher._count)
        assert heard == [f"+{n}" for n in range(len(heard))]


async def test_what_is_lost_for_good_clears_what_was_known(tmp_path: Path) -> None:
    async with following(tmp_path, keeps=1) as (publisher, heard):
        count = len(heard)
        for lose in (True, True, True, False):
            await publisher.publish(lose=lose)
        last = f"+{publisher._count - 1}"
        await eventually(lambda: last in heard)
        assert heard[count:] == ["0", last]
