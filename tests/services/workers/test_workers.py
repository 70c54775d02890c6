"""Worker services as an operator starts them: records in etcd, work between processes, metrics, and a clean end."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from armature.engines.host.compose import make_engine
from armature.engines.host.settings import WorkerSettings
from armature.runtime.errors import StartError
from armature.runtime.etcd import EtcdClient
from armature.runtime.processes import start_etcd
from armature.v1 import common_pb2 as common
from armature.v1.common_pb2 import Member
from armature.v1.worker_pb2 import WorkerError, WorkerStatsRequest
from armature.v1.worker_pb2_grpc import WorkerStub
from tests.support.cell import Service
from tests.support.decode_client import decode_client
from tests.support.eventually import eventually
from tests.support.workers import target_of

PROMPT = list(range(100, 1105))
FLAGS = ("--engine", "simulated", "--model", "", "--model-name", "m", "--drain-timeout-s", "10", "--namespace", "w")


@dataclass
class Workers:
    etcd: str
    prefill: Service
    decode: Service

    async def record(self, service: Service) -> Member:
        client = EtcdClient([self.etcd])
        try:
            kind = service.module.replace("_", "-")
            found = await client.get(f"/armature/w/{kind}/{service.member_id}")
        finally:
            await client.close()
        assert found is not None
        return Member.FromString(found.value)


@pytest.fixture
async def workers(tmp_path: Path) -> AsyncIterator[Workers]:
    etcd = await start_etcd(tmp_path / "etcd")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(etcd.stop)
        flags = ("--etcd", etcd.address, *FLAGS)
        slow = ("--simulated-block-bytes", "65536")
        services = [
            Service(name, name, (*flags, *slow), {}, tmp_path / f"{name}.log")
            for name in ("prefill_worker", "decode_worker")
        ]
        for service in services:
            stack.push_async_callback(service.stop)
        await asyncio.gather(*(service.spawn() for service in services))
        yield Workers(etcd.address, *services)


async def test_two_workers_share_a_request_and_end_cleanly(workers: Workers) -> None:
    prefill, decode = await workers.record(workers.prefill), await workers.record(workers.decode)
    assert (prefill.worker.role, decode.worker.role) == (common.ROLE_PREFILL, common.ROLE_DECODE)
    assert list(prefill.worker.transports) == ["nixl", "grpc"]
    assert prefill.worker.handoff == common.HANDOFF_PULL
    assert prefill.worker.kv_fingerprint == decode.worker.kv_fingerprint
    assert prefill.worker.model == decode.worker.model
    assert decode.worker.model.block_bytes == 65536

    target = target_of(prefill.address, prefill.worker.kv_fingerprint)
    async with decode_client(decode.address) as client:
        answer = await (await client.ask(PROMPT, prefill=target)).wait()
        assert answer.info.decode_worker == workers.decode.member_id
        assert answer.info.transport == "nixl"
        assert answer.info.transferred_bytes == 62 * 65536
        async with grpc.aio.insecure_channel(decode.address) as channel:
            stats = await WorkerStub(channel).GetStats(WorkerStatsRequest(), timeout=10)
        (transfer,) = stats.transfers
        assert (transfer.transport, transfer.prompts, transfer.size_bytes) == ("nixl", 1, 62 * 65536)
        assert 0 < stats.load.total_blocks <= decode.worker.num_blocks
        assert stats.prefill_tokens == len(PROMPT) - 62 * decode.worker.model.block_size
        assert stats.decode_tokens == len(answer.tokens)
        here, there = await workers.decode.metrics(), await workers.prefill.metrics()
        assert here["armature_worker_kv_transfer_bytes_total"] == 62 * 65536
        assert here["armature_worker_prefill_tokens_total"] == 13
        assert there["armature_worker_prefill_tokens_total"] == 62 * 16

        async def is_released() -> bool:
            return (await workers.prefill.metrics())["armature_worker_staged_blocks"] == 0

        await eventually(is_released)

        # What is running goes on, what comes now is sent elsewhere.
        running = await client.ask(PROMPT, max_tokens=30_000)
        await running.first_token()
        stopping = asyncio.create_task(workers.decode.stop())
        while True:
            late = await (await client.ask(PROMPT, max_tokens=1)).wait()
            if late.finish_reason == common.FINISH_REASON_ERROR:
                break
        assert late.error.code == WorkerError.CODE_UNAVAILABLE
        tokens = len(running.tokens)
        await eventually(lambda: len(running.tokens) > tokens)
        assert not stopping.done()
        await client.cancel(running)
        await running.wait()
    assert await stopping == 0
    assert await workers.prefill.stop() == 0


def test_a_model_that_is_not_there_keeps_the_worker_from_starting(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"can't load the model .*none: .*is not a directory"):
        make_engine(WorkerSettings(model=tmp_path / "none"))


def test_simulated_workers_take_a_presets_time_and_memory() -> None:
    settings = WorkerSettings(engine="simulated", performance="qwen3-32b-tp2-h200", block_size=512, model=Path("none"))
    assert make_engine(settings).info.num_blocks == 1400
    with pytest.raises(ValueError, match="performance is 'fast'; there are qwen3-32b-tp2-h200"):
        WorkerSettings(performance="fast")
    with pytest.raises(ValueError, match="speed_up must be above 0"):
        WorkerSettings(speed_up=0.0)


def test_a_read_that_outlives_its_lease_is_refused_as_a_setting(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "services.decode_worker", "--lease-s", "3", "--read-timeout-s", "5"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "read_timeout_s must be below lease_s" in ended.stderr
