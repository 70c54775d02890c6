"""A node of real processes: a kv-offload and workers with small devices; and conversations to have there."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from armature.v1.common_pb2 import Tier
from tests.support.cell import Service
from tests.support.decode_client import Answer, DecodeClient, decode_client

MODEL = "m"
ANSWER_TIMEOUT_S = 120.0


@dataclass
class Node:
    """`workers` by name, each with a client of its token stream."""

    services: dict[str, Service]
    clients: dict[str, DecodeClient]


@asynccontextmanager
async def offload_node(
    folder: Path,
    etcd_address: str,
    model: Path,
    *,
    workers: Mapping[str, Sequence[str]],
    store: Sequence[str] = (),
    namespace: str = "",
) -> AsyncIterator[Node]:
    """Workers by name with their flags; `store`: flags of the kv-offload. The node is called like the folder, and so is
    its namespace, unless another is given."""
    folder.mkdir(parents=True, exist_ok=True)
    common = ("--etcd", etcd_address, "--namespace", namespace or folder.name, "--drain-timeout-s", "5")
    common = (*common, "--node", folder.name)
    own = (*common, "--model", str(model), "--model-name", MODEL, "--role", "aggregated", "--threads", "1")
    services = {"kv-offload": Service("kv-offload", "kv_offload", (*common, *store), {}, folder / "kv-offload.log")}
    for name, flags in workers.items():
        services[name] = Service(name, "decode_worker", (*own, *flags), {}, folder / f"{name}.log")
    try:
        await asyncio.gather(*(service.spawn() for service in services.values()))
        async with AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(decode_client(services[name].addresses["grpc"]))
                for name in workers
            }
            yield Node(services, clients)
    finally:
        await asyncio.gather(*(service.stop() for service in services.values() if service.process is not None))


@dataclass
class Conversation:
    """Tokens of all turns so far."""

    tokens: list[int]
    ttft_s: list[float] = field(default_factory=list)

    async def turn(self, client: DecodeClient, words: Sequence[int], answer_tokens: int, **fields: object) -> Answer:
        """Say something more and take in the answer."""
        self.tokens += words
        started_s = perf_counter()
        answer = await client.ask(self.tokens, answer_tokens, model=MODEL, **fields)
        await answer.first_token(ANSWER_TIMEOUT_S)
        self.ttft_s.append(perf_counter() - started_s)
        await answer.wait(ANSWER_TIMEOUT_S)
        self.tokens += answer.tokens
        return answer


def words(rng: random.Random, count: int, vocabulary: int) -> list[int]:
    return [rng.randrange(3, vocabulary) for _ in range(count)]


def onboarded(answers: Sequence[Answer]) -> Counter[str]:
    """Tokens by tier."""
    counts: Counter[str] = Counter()
    for answer in answers:
        for one in answer.info.onboarded:
            counts[Tier.Name(one.tier).removeprefix("TIER_")] += one.tokens
    return counts


async def until_offloaded(worker: Service, num_blocks: int) -> None:
    """Wait until so many blocks were offered, or missed, since the worker's start."""
    async with asyncio.timeout(60):
        while True:
            found = await worker.metrics()
            names = ("armature_worker_offload_blocks_total", "armature_worker_offload_missed_blocks_total")
            if sum(found.get(name, 0.0) for name in names) >= num_blocks:
                return
            await asyncio.sleep(0.1)
