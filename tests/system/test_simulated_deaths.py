"""Half of the workers die together under load, and with them all that knew of them: no request is lost."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import grpc
import pytest

from armature.runtime.etcd import EtcdClient
from armature.runtime.processes import start_valkey
from tests.support.asking import Answer, ask, channel_to
from tests.support.cell import Cell, running_cell
from tests.support.eventually import eventually

WORKERS = 8
"""In each of two processes."""
FAMILIES, CLIENTS, OUTPUT_TOKENS = 24, 6, 6
BLOCK_SIZE, SHARED_BLOCKS = 64, 40
FLAGS = (
    "--performance", "qwen3-32b-tp2-h200", "--speed-up", "10", "--simulated-block-bytes", "64",
    "--block-size", str(BLOCK_SIZE), "--num-blocks", "1000", "--max-num-batched-tokens", "8192",
)  # fmt: skip


@pytest.fixture
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    folder = tmp_path_factory.mktemp("restarts")
    valkey = await start_valkey(folder / "valkey")
    flags = {"kv_index": ("--redis", f"redis://{valkey.address}", "--snapshot-interval-s", "0.2")}
    try:
        async with running_cell(
            folder, etcd_address, prefill=0, decode=0, fleets=(WORKERS, WORKERS), flags=flags,
            worker_flags=(*FLAGS, "--lease-ttl-s", "2"),
        ) as cell:  # fmt: skip
            yield cell
    finally:
        await valkey.stop()


@dataclass
class Traffic:
    """Clients that ask on and on, one family of prompts after the other, each time with a question of their own."""

    channel: grpc.aio.Channel
    rng: random.Random = field(default_factory=lambda: random.Random(11))
    asked: int = 0
    is_over: bool = False
    answers: dict[int, Answer] = field(default_factory=dict[int, Answer])
    """By the order in which they were asked for."""

    def __post_init__(self) -> None:
        self._heads = [self._tokens(SHARED_BLOCKS * BLOCK_SIZE) for _ in range(FAMILIES)]

    def _tokens(self, count: int) -> list[int]:
        return [self.rng.randrange(300, 4000) for _ in range(count)]

    async def client(self) -> None:
        while not self.is_over:
            number, self.asked = self.asked, self.asked + 1
            prompt = self._heads[number % FAMILIES] + self._tokens(BLOCK_SIZE)
            self.answers[number] = await ask(self.channel, prompt, OUTPUT_TOKENS)

    async def next_round(self) -> list[Answer]:
        """The answers to what is asked from now on, every family once."""
        wanted = range(self.asked, self.asked + FAMILIES)
        await eventually(
            lambda: all(number in self.answers for number in wanted), what="a round of answers", deadline_s=60.0
        )
        return [self.answers[number] for number in wanted]


def cached_share(answers: Sequence[Answer]) -> float:
    return sum(answer.info.cached_tokens for answer in answers) / sum(a.usage.prompt_tokens for a in answers)


def home_of(answer: Answer) -> str:
    return answer.info.decode_worker


async def restart(cell: Cell, *names: str) -> None:
    await asyncio.gather(*(cell.services[name].kill() for name in names))
    await asyncio.gather(*(cell.services[name].spawn() for name in names))


async def until_router_knows(cell: Cell) -> None:
    """The new router has the index, and the gateway has found it."""

    async def knows() -> bool:
        metrics = await cell.services["router"].metrics()
        has_copy = metrics["armature_router_index_copies_total"] and not metrics["armature_router_index_stale_seconds"]
        return bool(has_copy and metrics["armature_router_decisions_total"] > CLIENTS)

    await eventually(knows, 40.0, what="the new router is asked")


async def until_gone(etcd_address: str, cell: Cell, prefix: str) -> None:
    namespace = cell.services["router"].flags[3]
    client = EtcdClient([etcd_address], timeout_s=10.0)

    async def is_gone() -> bool:
        return not (await client.list(f"/armature/{namespace}/decode-worker/{prefix}")).records

    try:
        await eventually(is_gone, 40.0, what="the leases of the dead have ended")
    finally:
        await client.close()


async def test_a_dead_node_is_left_alone_though_index_and_router_died_with_it(cell: Cell, etcd_address: str) -> None:
    async with channel_to(cell) as channel, asyncio.TaskGroup() as tasks:
        traffic = Traffic(channel)
        for _ in range(CLIENTS):
            tasks.create_task(traffic.client())
        for _ in range(3):
            await traffic.next_round()
        warm = await traffic.next_round()
        assert cached_share(warm) > 0.9
        dead = cell.services["fleet-1"].member_id
        lost = [home_of(answer) for answer in warm if home_of(answer).startswith(dead)]
        assert 0 < len(lost) < FAMILIES, "all prompts are on half of the workers: the deaths would not show"

        # The index comes back from its snapshots, which name the dead too.
        await asyncio.gather(cell.services["fleet-1"].kill(), restart(cell, "kv-index", "router"))
        await until_gone(etcd_address, cell, dead)
        await until_router_knows(cell)
        for _ in range(2):
            await traffic.next_round()
        healed = await traffic.next_round()
        assert not [answer for answer in healed if answer.info.migrations]
        assert not [answer for answer in healed if home_of(answer).startswith(dead)]
        assert cached_share(healed) > 0.9
        traffic.is_over = True
    for answer in traffic.answers.values():
        assert len(answer.token_ids) == OUTPUT_TOKENS
