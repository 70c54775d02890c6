"""Whatever becomes of a kv-offload, its disk or its Redis: answers are undisturbed, and what failed is counted."""

import asyncio
import random
import resource
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import grpc

from armature.blocks.hashing import BlockHasher
from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.runtime.processes import start_valkey
from armature.runtime.settings import CommonSettings
from armature.v1 import kv_offload_pb2 as pb
from armature.v1.common_pb2 import TIER_G3
from armature.v1.kv_offload_pb2_grpc import KvOffloadStub
from tests.support.cell import Service
from tests.support.decode_client import Answer
from tests.support.eventually import eventually
from tests.support.offload_node import MODEL, Conversation, Node, offload_node, until_offloaded, words

VOCABULARY = 4096
BLOCK_BYTES = (4 * 2 * 16 + 1) * 4 * 32 * 4
"""Of the demo model in 32-bit floats: rows of 4 heads with 32 numbers each."""
CONVERSATIONS, HISTORY_TOKENS = 4, 600
HISTORY_BLOCKS = 37
"""Whole ones of a history and its first answer."""
WORKER = ("--offload", "--num-blocks", "90", "--max-num-batched-tokens", "256", "--dtype", "float32")
HOST = ("--policy", "all", "--host-bytes", str(HISTORY_BLOCKS * BLOCK_BYTES))
"""Room for one history: nearly everything goes further down."""


class Talks:
    """Conversations, and what was asked in each turn, so that all can be asked again without any cache."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.all = [Conversation(words(self._rng, HISTORY_TOKENS, VOCABULARY)) for _ in range(CONVERSATIONS)]
        self._asked: list[tuple[list[int], Answer]] = []

    async def begin(self, node: Node) -> None:
        """The first turns, one by one, until all their blocks were offered."""
        for number, talk in enumerate(self.all, 1):
            await talk.turn(node.clients["worker"], [], 8)
            await until_offloaded(node.services["worker"], number * HISTORY_BLOCKS)

    async def turn(self, node: Node, talks: Sequence[Conversation]) -> list[Answer]:
        """One more turn of each of these, all at once."""
        return await asyncio.gather(*[self._turn(node, talk) for talk in talks])

    async def _turn(self, node: Node, talk: Conversation) -> Answer:
        more = words(self._rng, 20, VOCABULARY)
        prompt = [*talk.tokens, *more]
        answer = await talk.turn(node.clients["worker"], more, 8)
        self._asked.append((prompt, answer))
        return answer

    async def check(self, node: Node) -> None:
        """Every answer is what a request gets for which nothing is found anywhere."""
        for prompt, answer in self._asked:
            alone = await Conversation(prompt).turn(node.clients["worker"], [], 8, cache_namespace="undisturbed")
            assert answer.tokens == alone.tokens


async def problems(store: Service) -> dict[str, float]:
    """Blocks that a tier could not write or read, by `tier reason`."""
    return {
        f"{labels['tier']} {labels['reason']}": value
        for name, labels, value in await store.samples()
        if name == "armature_kv_offload_problems_total"
    }


async def is_busy(store: Service, turns: "asyncio.Task[list[Answer]]") -> bool:
    """Whether the second turns are on their way, at the kv-offload too."""
    return turns.done() or (await store.metrics()).get("armature_kv_offload_hit_blocks_total", 0.0) > 0


async def ready_blocks(store: Service, talks: Sequence[Conversation]) -> tuple[Counter[int], Counter[int]]:
    """Blocks of each tier that a worker would get of these histories, and how the streams ended."""
    ready: Counter[int] = Counter()
    ends: Counter[int] = Counter()
    hasher = BlockHasher(CommonSettings().cluster_secret.encode(), 16)
    async with grpc.aio.insecure_channel(store.addresses["grpc"]) as channel:
        stub = KvOffloadStub(channel)
        layout = (await stub.GetStats(pb.StatsRequest(), timeout=10)).layout
        for talk in talks:
            digests = b"".join(hasher.extend(hasher.root(MODEL), talk.tokens))
            call = stub.Onboard(pb.OnboardRequest(layout=layout, digests=digests), timeout=30)
            tiers = list((await call.read()).start.tiers)
            while (update := await call.read()).WhichOneof("step") == "ready":
                ready.update(tiers[update.ready.first_block :][: len(update.ready.block_ids)])
            ends[update.done.reason] += 1
            call.cancel()
    return ready, ends


async def test_answers_survive_a_killed_kv_offload_and_its_damaged_disk(etcd_address: str, tmp_path: Path) -> None:
    flags = (*HOST, "--disk-dir", str(tmp_path / "disk"), "--disk-bytes", str(1 << 28))
    talks = Talks(11)
    async with offload_node(
        tmp_path / "killed", etcd_address, DEMO_MODEL_PATH, workers={"worker": WORKER}, store=flags
    ) as node:
        store, worker = node.services["kv-offload"], node.services["worker"]
        await talks.begin(node)
        under_load = asyncio.create_task(talks.turn(node, talks.all))
        await eventually(lambda: is_busy(store, under_load), what="workers read or write")
        await store.kill()
        await under_load
        (blocks,) = (tmp_path / "disk").rglob("blocks")
        held = bytearray(blocks.read_bytes())
        stride = -(-BLOCK_BYTES // 4096) * 4096
        for start in range(stride // 2, len(held) // 3, stride):
            held[start] ^= 0x55
        del held[-3 * stride // 2 :]
        blocks.write_bytes(held)

        await store.spawn()
        await eventually(lambda: worker.log.read_text().count("keeps blocks for this worker") == 2, 60.0)
        assert "damaged blocks on disk were discarded" in store.log.read_text()
        ready, ends = await ready_blocks(store, talks.all)
        assert ready[TIER_G3] > 0, "what was not damaged is found again"
        assert ends[pb.OnboardDone.REASON_LOST] > 0, "what was damaged is noticed"
        assert (await problems(store))["g3 damaged"] > 0
        for talk in talks.all:
            await talks.turn(node, [talk])
        await talks.check(node)


async def test_answers_survive_a_redis_that_is_gone_and_a_full_disk(etcd_address: str, tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    disk = ("--disk-dir", str(tmp_path / "disk"), "--disk-bytes", str(HISTORY_BLOCKS * (BLOCK_BYTES + 4096)))
    flags = (*HOST, *disk, "--redis", f"redis://{valkey.address}", "--remote-bytes", str(1 << 28))
    talks = Talks(12)
    async with offload_node(
        tmp_path / "full", etcd_address, DEMO_MODEL_PATH, workers={"worker": WORKER}, store=flags
    ) as node:
        store = node.services["kv-offload"]
        await talks.begin(node)
        await valkey.kill()
        await talks.turn(node, talks.all[:2])
        await eventually(lambda: "Redis does not answer" in store.log.read_text(), what="Redis is missed")
        assert (await problems(store))["g4 away"] > 0
        # The kernel refuses to let a process write beyond this in any file, as a full disk does.
        resource.prlimit(store.pid, resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        for talk in reversed(talks.all):
            await talks.turn(node, [talk])
        await eventually(lambda: "the disk is full" in store.log.read_text(), what="the disk's end is noticed")
        assert (await problems(store))["g3 full"] > 0
        await talks.check(node)
        assert "the process ends" not in store.log.read_text()
