"""A conversation goes on where its worker is no more: another node's worker reads it from the kv-offload it left."""

import asyncio
import random
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from armature.blocks.hashing import BlockHasher, pack_hashes
from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.runtime.settings import CommonSettings
from armature.v1.router_pb2 import Assignment, ExplainRequest, Query, RouteRequest, RouterStatsRequest
from armature.v1.router_pb2_grpc import RouterStub
from tests.support.cell import Service
from tests.support.eventually import eventually
from tests.support.offload_node import MODEL, Conversation, offload_node, until_offloaded, words

NAMESPACE, VOCABULARY = "two-nodes", 4096
HISTORY_TOKENS, HISTORY_BLOCKS = 600, 37
WORKER = ("--offload", "--peer-pull", "--num-blocks", "200", "--dtype", "float32")


@dataclass
class Routed:
    """A router, asked as gateways do."""

    stub: Any
    route: Any
    queries: int = 0

    async def place(self, tokens: Sequence[int], excluded: Sequence[str] = ()) -> Assignment:
        """Where a prompt goes."""
        self.queries += 1
        hasher = BlockHasher(CommonSettings().cluster_secret.encode(), 16)
        query = Query(
            query_id=self.queries, request_id=f"r{self.queries}", model=MODEL, prompt_tokens=len(tokens),
            sequence_hashes=pack_hashes(hasher.extend(hasher.root(MODEL), array("I", tokens))),
            excluded_workers=excluded,
        )  # fmt: skip
        await self.route.write(RouteRequest(queries=[query]))
        (placement,) = (await self.route.read()).placements
        assert placement.HasField("assigned"), placement
        return placement.assigned

    async def indexed_blocks(self) -> int:
        """Distinct blocks of each tier, summed up."""
        return (await self.stub.GetStats(RouterStatsRequest(), timeout=10)).index_blocks


@asynccontextmanager
async def router(folder: Path, etcd_address: str) -> AsyncGenerator[Routed]:
    """A kv-index and a router."""
    flags = ("--etcd", etcd_address, "--namespace", NAMESPACE, "--drain-timeout-s", "5")
    services = [Service(name, name, flags, {}, folder / f"{name}.log") for name in ("kv_index", "router")]
    try:
        await asyncio.gather(*(service.spawn() for service in services))
        async with grpc.aio.insecure_channel(services[1].addresses["grpc"]) as channel:
            stub = RouterStub(channel)
            route = stub.Route()
            yield Routed(stub, route)
            route.cancel()
    finally:
        await asyncio.gather(*(service.stop() for service in services if service.process is not None))


@pytest.mark.slow
async def test_a_conversation_is_read_from_the_kv_offload_of_the_node_where_it_began(
    etcd_address: str, tmp_path: Path
) -> None:
    rng, store = random.Random(5), ("--policy", "all", "--host-bytes", str(1 << 25))
    more: dict[str, Any] = {"workers": {"worker": WORKER}, "store": store, "namespace": NAMESPACE}
    async with (
        router(tmp_path, etcd_address) as routed,
        offload_node(tmp_path / "first", etcd_address, DEMO_MODEL_PATH, **more) as first,
        offload_node(tmp_path / "second", etcd_address, DEMO_MODEL_PATH, **more) as second,
    ):
        talk, other = (Conversation(words(rng, HISTORY_TOKENS, VOCABULARY)) for _ in range(2))
        home, client = first.services["worker"], second.clients["worker"]
        await talk.turn(first.clients["worker"], [], 8)
        await until_offloaded(home, HISTORY_BLOCKS)
        await other.turn(client, [], 8)
        await until_offloaded(second.services["worker"], HISTORY_BLOCKS)
        # Each history on its device and in host memory of its node; then its worker goes, its node's kv-offload stays.
        await eventually(lambda: holds(routed, 4 * HISTORY_BLOCKS))
        first.clients["worker"].call.cancel()
        await home.stop()
        await eventually(lambda: holds(routed, 3 * HISTORY_BLOCKS))

        history, said = list(talk.tokens), words(rng, 20, VOCABULARY)
        assigned = await routed.place([*history, *said], excluded=[home.member_id])
        offload = first.services["kv-offload"].member_id
        assert (assigned.prefill.worker_id, assigned.prefill.is_offload) == (offload, True), assigned.reason
        (decision,) = (await routed.stub.Explain(ExplainRequest(without_counterfactuals=True), timeout=10)).decisions
        assert f"after reading from {offload}" in decision.reason
        assert [one.pull_worker for one in decision.candidates if one.is_chosen] == [offload]

        answer = await talk.turn(client, said, 8, prefill=assigned.prefill)
        info = answer.info
        assert (info.pull_worker, info.prefill_worker) == (offload, "")
        assert info.transferred_tokens == info.prefill_cached_tokens == HISTORY_BLOCKS * 16
        assert sum(one.tokens for one in info.onboarded) == info.transferred_tokens
        # In a namespace of its own nothing is found.
        alone = await Conversation(history).turn(client, said, 8, cache_namespace="undisturbed")
        assert (answer.tokens, alone.info.cached_tokens) == (alone.tokens, 0)


async def holds(routed: Routed, blocks: int) -> bool:
    return await routed.indexed_blocks() == blocks
