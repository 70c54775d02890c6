"""The request log: what happened, one line each, whatever the disk does."""

import asyncio
import json
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.openai.serving.metrics import LOG_LOST
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.request_log import MAX_WAITING, Entry, RequestLog, open_request_log
from armature.runtime.errors import StartError
from armature.v1.worker_pb2 import WorkerError
from tests.services.gateway.fakes import breaking_after, error, token_array
from tests.services.gateway.harness import MODEL, Gateway, answer, make_worker, running_gateway
from tests.services.gateway.test_disconnect import leave_when
from tests.support.eventually import eventually

LONG = ServingOptions(stall_timeout_s=60)


@asynccontextmanager
async def logging_to(gateway: Gateway, path: Path, max_bytes: int = 1 << 20) -> AsyncIterator[None]:
    requests = open_request_log(path, max_bytes)
    gateway.core.on_end.append(requests.ended)
    running = asyncio.create_task(requests.run())
    yield
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def entry(number: int = 0, blocks: int = 0) -> Entry:
    return Entry(
        received_unix_s=1.0e9,
        model="m",
        tenant="",
        session_id=str(number),
        priority=0,
        input_length=8 * blocks,
        output_length=1,
        cached_tokens=0,
        digests=[BlockDigest(bytes(16))] * blocks,
        block_size=8,
        ttft_s=0.5,
        e2e_s=1.0,
        finish_reason="stop",
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def write_all(log: RequestLog, entries: list[Entry]) -> None:
    for one in entries:
        log.add(one)
    running = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_request_is_logged_with_its_blocks_and_without_its_text(tmp_path: Path) -> None:
    worker = make_worker()
    path = tmp_path / "requests.jsonl"
    async with running_gateway(worker, options=LONG) as gateway, logging_to(gateway, path):
        said = {"session_id": "s-1", "hints": {"priority": 3}}
        whole = await gateway.chat(messages=[{"role": "user", "content": "secret " * 20}], armature=said)
        streamed = await gateway.chat(max_tokens=5, stream=True)
        assert (whole.status_code, streamed.status_code) == (200, 200)
        assert not path.read_bytes()  # nobody waits for the disk
        await eventually(lambda: len(lines(path)) == 2)
    first, second = lines(path)
    tokens = token_array(worker.requests[0].token_ids)
    hasher = BlockHasher(b"secret", 8)
    digests = hasher.extend(hasher.root(MODEL), tokens)
    assert first.pop("hash_ids") == [int.from_bytes(digest[:8], "little") for digest in digests]
    times = [first.pop(name) for name in ("timestamp", "ttft_s", "e2e_s")]
    assert first == {
        "input_length": len(tokens),
        "output_length": len(answer()),
        "cached_tokens": 4,
        "block_size": 8,
        "model": MODEL,
        "tenant": "default",
        "session_id": "s-1",
        "priority": 3,
        "finish_reason": "stop",
    }
    assert 0 < times[1] <= times[2]
    assert times[0] <= second["timestamp"]
    assert (second["output_length"], second["finish_reason"], second["session_id"]) == (5, "length", "")
    assert "secret" not in path.read_text()


async def test_requests_that_end_badly_are_logged_too(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    worker = make_worker(script=breaking_after(5, "silence"))
    async with running_gateway(worker, options=LONG) as gateway, logging_to(gateway, path):
        await leave_when(gateway, lambda: worker.requests, stream=True)
        worker.script = breaking_after(0, error(WorkerError.CODE_INVALID))
        assert (await gateway.chat()).status_code == 400
        await eventually(lambda: len(lines(path)) == 2)
    left, failed = lines(path)
    assert left["finish_reason"] == "cancelled"
    assert (failed["finish_reason"], failed["ttft_s"], failed["output_length"]) == ("error", None, 0)


async def test_the_log_is_appended_to_and_starts_anew_when_it_is_full(tmp_path: Path) -> None:
    path, old = tmp_path / "requests.jsonl", tmp_path / "requests.jsonl.1"
    size = len(entry().line())
    await write_all(RequestLog(path, 3 * size), [entry(n) for n in range(2)])
    await write_all(RequestLog(path, 3 * size), [entry(n) for n in range(2, 8)])
    assert [line["session_id"] for line in lines(old)] == ["3", "4", "5"]
    assert [line["session_id"] for line in lines(path)] == ["6", "7"]


async def test_a_line_longer_than_the_log_is_still_written(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    await write_all(RequestLog(path, 10), [entry(0, blocks=50), entry(1)])
    assert [line["session_id"] for line in lines(path)] == ["1"]
    assert len(lines(tmp_path / "requests.jsonl.1")[0]["hash_ids"]) == 50


async def test_a_full_disk_costs_lines_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files stands in for the disk: it cuts a line in two, too."""
    path = tmp_path / "requests.jsonl"
    size, lost = len(entry().line()), LOG_LOST._value.get()
    log = RequestLog(path, 1 << 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, before[1]))
    try:
        for number in range(4):
            log.add(entry(number))
        log._write()
        log.add(entry(4))
        log._write()
        log.add(entry(5))
        log._write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert LOG_LOST._value.get() - lost == 4
    assert len([record for record in caplog.records if "can't be written" in record.message]) == 1
    await write_all(log, [entry(6)])
    assert [line["session_id"] for line in lines(path)] == ["4", "5", "6"]


async def test_what_waits_to_be_written_is_bounded(tmp_path: Path) -> None:
    lost = LOG_LOST._value.get()
    log = RequestLog(tmp_path / "requests.jsonl", 1 << 30)
    await write_all(log, [entry(n) for n in range(MAX_WAITING + 3)])
    assert LOG_LOST._value.get() - lost == 3
    assert len(lines(tmp_path / "requests.jsonl")) == MAX_WAITING


def test_a_log_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=f"can't write {tmp_path} .*--request-log"):
        open_request_log(tmp_path, 100)
