"""kv-index and router as processes, with etcd between them and scripted workers behind."""

import asyncio
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml
from prometheus_client.parser import text_string_to_metric_families

from armature.index.packing import pack_hashes
from armature.routing.policy import with_option
from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import member_key
from armature.runtime.policies import read_policy
from armature.v1.kv_index_pb2 import MatchRequest
from armature.v1.kv_index_pb2_grpc import KvIndexStub
from armature.v1.router_pb2 import Placement, Progress, Query, Rejection, RouteRequest, RouteResponse
from armature.v1.router_pb2_grpc import RouterStub
from tests.support.eventually import eventually
from tests.support.running import Running, running
from tests.support.scripted_worker import ScriptedWorker, scripted_workers


class Cell:
    def __init__(self, etcd: EtcdClient, folder: Path) -> None:
        self.etcd = etcd
        self.folder = folder
        self.namespace = f"routing-{secrets.token_hex(4)}"
        self.address = ""

    @asynccontextmanager
    async def service(self, name: str, *flags: str) -> AsyncIterator[Running]:
        flags = ("--etcd", self.address, "--namespace", self.namespace, "--lease-ttl-s", "2", *flags)
        log = self.folder / f"{name}-{secrets.token_hex(2)}.log"
        async with running(f"services.{name}", *flags, stderr=log) as child:
            assert child.addresses is not None, child.stderr
            yield child

    async def join(self, *workers: ScriptedWorker) -> None:
        for worker in workers:
            member = worker.member
            await self.etcd.put(member_key(self.namespace, member.kind, member.id), member.SerializeToString())

    async def leave(self, worker: ScriptedWorker) -> None:
        await self.etcd.delete(member_key(self.namespace, worker.member.kind, worker.worker_id))


class Gateway:
    """Has one request at a time."""

    def __init__(self, router: Running) -> None:
        self.channel = grpc.aio.insecure_channel(router.address())
        self.call: Any = RouterStub(self.channel).Route()
        self.asked = 0

    async def place(self, tokens: int = 500) -> Placement:
        self.asked += 1
        query = Query(
            query_id=self.asked, request_id=f"r{self.asked}", model="m", prompt_tokens=tokens,
            sequence_hashes=pack_hashes(range(tokens // 10)),
        )  # fmt: skip
        ended = Progress(request_id=f"r{self.asked - 1}", kind=Progress.KIND_FINISHED)
        await self.call.write(RouteRequest(queries=[query], progress=[ended]))
        answer = await asyncio.wait_for(self.call.read(), 10)
        assert isinstance(answer, RouteResponse)
        return answer.placements[0]

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


async def metrics(child: Running) -> dict[str, float]:
    host, _, port = child.address("metrics").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples if len(sample.labels) < 2}


async def matches(kv_index: Running) -> dict[str, int]:
    async with grpc.aio.insecure_channel(kv_index.address()) as channel:
        asked = MatchRequest(sequence_hashes=pack_hashes(range(40)))
        answer = await KvIndexStub(channel).Match(asked, timeout=10)
        return {match.worker_id: match.blocks for match in answer.matches if not match.stale}


async def test_the_router_follows_the_index_and_outlives_it(
    etcd_address: str, etcd: EtcdClient, tmp_path: Path
) -> None:
    cell = Cell(etcd, tmp_path)
    cell.address = etcd_address
    forgetful = tmp_path / "forgetful.yaml"
    forgetful.write_text(yaml.safe_dump(with_option(read_policy("seconds"), "expected_ttl_s", 0)))
    async with (
        scripted_workers("d1", "d2", "d3") as (one, two, three),
        cell.service("router", "--policy", str(forgetful)) as router,
    ):
        gateway = Gateway(router)
        assert (await gateway.place()).rejected.code == Rejection.CODE_NO_WORKERS
        two.store(range(40))
        await cell.join(one, two)

        async def goes_to(worker: ScriptedWorker, overlap_tokens: int) -> bool:
            assigned = (await gateway.place()).assigned
            return (assigned.worker_id, assigned.overlap_tokens) == (worker.worker_id, overlap_tokens)

        async with cell.service("kv_index") as kv_index:
            # Registered only when it has heard both: its first answer is whole.
            assert await matches(kv_index) == {"d2": 40}
            await eventually(lambda: goes_to(two, 400))
            kv_index.signal(signal.SIGKILL)
            await kv_index.exit_status()
        # The old copy serves on.
        assert (await gateway.place()).assigned.overlap_tokens > 0
        one.store(range(45))
        two.clear()
        async with cell.service("kv_index") as kv_index:
            assert await matches(kv_index) == {"d1": 40}
            await eventually(lambda: goes_to(one, 450))
            # A worker that dies without a word: its lease runs out, here its record goes.
            await one.stop()
            await cell.leave(one)
            three.store(range(20))
            await cell.join(three)
            await eventually(lambda: goes_to(three, 200))
            seen = await metrics(router)
            assert seen["armature_router_index_copies_total"] == 2
            assert seen["armature_router_gateways"] == 1
            assert seen["armature_router_requests_in_flight"] > 0
            assert (await metrics(kv_index))["armature_kv_index_followers"] == 1
            await gateway.close()

            async def forgot() -> bool:
                return (await metrics(router))["armature_router_requests_in_flight"] == 0

            await eventually(forgot)
            for child in (router, kv_index):
                child.signal(signal.SIGTERM)
                assert await child.exit_status() == 0
