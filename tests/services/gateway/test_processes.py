"""The gateway as a process: settings, readiness, membership from etcd, drain."""

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import member_key
from armature.v1.inference_pb2 import GenerateRequest
from armature.v1.inference_pb2_grpc import InferenceStub
from tests.services.gateway.fakes import FakeWorker, listening
from tests.services.gateway.harness import MODEL, TEXT, answer, card, make_worker, model_directory
from tests.support.eventually import eventually
from tests.support.running import Running, running

NAMESPACE = f"gateway-{secrets.token_hex(4)}"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def gateway(etcd_address: str, folder: Path, *flags: str, ready: bool = True) -> AsyncIterator[Running]:
    common = ("--etcd", etcd_address, "--namespace", NAMESPACE, "--http-port", "0", *flags)
    async with running("services.gateway", *common, stderr=folder / "gateway.log", ready=ready) as child:
        yield child


async def join(etcd: EtcdClient, worker: FakeWorker) -> None:
    member = worker.member
    await etcd.put(member_key(NAMESPACE, member.kind, member.id), member.SerializeToString())


async def leave(etcd: EtcdClient, worker: FakeWorker) -> None:
    await etcd.delete(member_key(NAMESPACE, worker.member.kind, worker.worker_id))


async def test_a_gateway_serves_what_joins_and_drains_when_told_to_stop(
    etcd: EtcdClient, etcd_address: str, tmp_path: Path
) -> None:
    worker = make_worker(step=asyncio.Event())
    assert worker.step is not None
    async with listening(worker), gateway(etcd_address, tmp_path) as child:
        url = f"http://{child.address('http')}"
        async with httpx.AsyncClient(base_url=url, timeout=15) as client:

            async def status(path: str) -> int:
                return (await client.get(path)).status_code

            assert [await status(path) for path in ("/live", "/ready")] == [200, 503]
            assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 404
            await join(etcd, worker)

            async def is_ready() -> bool:
                return await status("/ready") == 200

            await eventually(is_ready)
            running_request = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
            await eventually(lambda: worker.requests)
            child.signal(signal.SIGTERM)

            async def is_draining() -> bool:
                return await status("/ready") == 503

            await eventually(is_draining)
            assert (await client.post("/v1/chat/completions", json=BODY)).status_code == 503
            worker.step.set()
            assert (await running_request).json()["choices"][0]["message"]["content"] == TEXT
            assert await child.exit_status() == 0
            await leave(etcd, worker)


async def test_both_surfaces_give_the_same_answer_and_metrics_are_in_both_places(
    etcd: EtcdClient, etcd_address: str, tmp_path: Path
) -> None:
    worker, log = make_worker("worker-b", card=card(path="/not/here")), str(tmp_path / "requests.jsonl")
    async with (
        listening(worker),
        gateway(etcd_address, tmp_path, "--tokenizer", f"{MODEL}={model_directory()}", "--request-log", log) as child,
        httpx.AsyncClient(base_url=f"http://{child.address('http')}", timeout=15) as client,
        grpc.aio.insecure_channel(child.address()) as channel,
    ):
        await join(etcd, worker)

        async def text() -> Any:
            return (await client.post("/v1/completions", json={"model": MODEL, "prompt": "x", "max_tokens": 99})).json()

        async def is_served() -> bool:
            return "choices" in await text()

        await eventually(is_served)
        assert (await text())["choices"][0]["text"] == TEXT
        request = GenerateRequest(model=MODEL, prompt="x")
        stub: Any = InferenceStub(channel)
        assert "".join([response.text async for response in stub.Generate(request, timeout=10)]) == TEXT
        for address in (child.address("http"), child.address("metrics")):
            scraped = (await client.get(f"http://{address}/metrics")).text
            assert f'armature_gateway_output_tokens_total{{model="{MODEL}"}} {3.0 * len(answer())}' in scraped
        await leave(etcd, worker)
        child.signal(signal.SIGTERM)
        assert await child.exit_status() == 0
    logged = [json.loads(line) for line in Path(log).read_text().splitlines()]
    assert [line["output_length"] for line in logged] == [len(answer())] * 3


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--migration-limit", "-1"), "migration_limit"),
        (("--stall-timeout-s", "0"), "stall_timeout_s"),
        (("--tokenizer", "tiny"), "MODEL=DIRECTORY"),
        (("--http-port", "70000"), "http_port"),
        (("--request-log-max-bytes", "0"), "request_log_max_bytes"),
        (("--processes", "2", "--port", "4000"), "ports of their own"),
    ],
)
async def test_wrong_settings_are_told_by_name(flags: tuple[str, ...], told: str, tmp_path: Path) -> None:
    async with gateway("127.0.0.1:1", tmp_path, *flags, ready=False) as child:
        assert await child.exit_status() == 2
        assert told in child.stderr
        assert child.stderr.count("\n") == 1


async def test_a_taken_port_is_told_in_one_line(etcd_address: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags in ((), ("--processes", "2")):
            async with gateway(etcd_address, tmp_path, "--http-port", str(port), *flags, ready=False) as child:
                assert await child.exit_status() == 1
                assert "another --http-port" in child.stderr
