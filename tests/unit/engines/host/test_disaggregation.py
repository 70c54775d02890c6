"""A decode worker here, a prefill worker in a process of its own: what is fetched, and what if that fails."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from armature.engines.host.client_stream import ClientStream
from armature.engines.host.conversion import pack_tokens
from armature.runtime import telemetry
from armature.scheduling.request import StepOutput
from armature.transfer.source import Source
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import DecodeRequest
from tests.support.decode_client import DecodeClient, decode_client
from tests.support.eventually import eventually
from tests.support.freezing import freeze
from tests.support.otlp_sink import otlp_sink
from tests.support.workers import Child, Setup, Worker, child_worker, target_of, worker

PROMPT = list(range(100, 1105))  # 62 whole blocks to fetch, and 13 tokens
BLOCKS = 62
TRANSPORTS = {"nixl": ("nixl", {}), "nixl over tcp": ("nixl", {"UCX_TLS": "tcp"}), "grpc": ("grpc", {})}
SLOW = Setup(role="prefill", step_s=0.02, max_num_batched_tokens=16)
"""More than a second for the prompt."""


@pytest.fixture(params=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name, env = TRANSPORTS[request.param]
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    return name


@asynccontextmanager
async def pair(prefill: Setup, decode: Setup | None = None) -> AsyncIterator[tuple[Child, Worker, DecodeClient]]:
    decode = decode or Setup(transport=prefill.transport)
    async with (
        child_worker(prefill) as far,
        worker(decode) as near,
        decode_client(near.address) as client,
    ):
        yield far, near, client


async def local_tokens(client: DecodeClient, prompt: list[int] = PROMPT) -> list[int]:
    """What the same worker answers when it computes the prompt itself."""
    return (await (await client.ask(prompt, cache_namespace="alone")).wait()).tokens


async def until_free(near: Worker, far: Child | None = None) -> None:
    """Every block is back on both sides, and nothing is remembered."""
    await eventually(lambda: near.load.free_blocks == near.load.total_blocks)
    assert not near.load.quarantined_blocks and not len(near.host.generations)
    async with asyncio.timeout(10):
        while far is not None:
            load = await far.load()
            if load["free_blocks"] == load["total_blocks"] and not load["staged_blocks"] and not load["stagings"]:
                return


def failures(reason: str) -> float:
    return REGISTRY.get_sample_value("armature_worker_fetch_failures_total", {"reason": reason}) or 0.0


@dataclass
class Shared:
    """A pair that several tests use, each in a cache namespace of its own."""

    transport: str
    far: Child
    near: Worker
    client: DecodeClient


@pytest.fixture(scope="module", params=list(TRANSPORTS))
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    name, env = TRANSPORTS[request.param]
    with pytest.MonkeyPatch.context() as patch:
        for key, value in env.items():
            patch.setenv(key, value)
        async with pair(Setup(role="prefill", transport=name), Setup(transport=name, num_blocks=900)) as found:
            yield Shared(name, *found)


async def test_a_prompt_computed_elsewhere_gives_the_same_answer(shared: Shared) -> None:
    answer = await (await shared.client.ask(PROMPT, prefill=shared.far.target())).wait()
    assert answer.tokens == await local_tokens(shared.client)
    info = answer.info
    assert info.prefill_worker == "prefill"
    assert info.transport == shared.transport
    assert info.transferred_tokens == BLOCKS * 16
    assert info.transferred_bytes == BLOCKS * 4096
    assert info.transfer_s > 0
    assert info.cached_tokens == 0
    await until_free(shared.near, shared.far)


async def test_only_what_is_missing_is_fetched(shared: Shared) -> None:
    client, mine = shared.client, {"prefill": shared.far.target(), "cache_namespace": "missing"}
    await (await client.ask(PROMPT[:500], cache_namespace="missing")).wait()
    answer = await (await client.ask(PROMPT, **mine)).wait()
    assert answer.info.cached_tokens == 31 * 16
    assert answer.info.transferred_tokens == (BLOCKS - 31) * 16
    assert answer.info.prefill_cached_tokens == 0
    again = await (await client.ask(PROMPT, **mine)).wait()
    assert again.info.cached_tokens == BLOCKS * 16
    assert not again.info.transferred_tokens and not again.info.prefill_worker


async def test_fifty_requests_at_once_leave_nothing_behind(shared: Shared) -> None:
    client = shared.client
    prompts = [list(range(i * 7, i * 7 + 200 + i)) for i in range(50)]
    answers = [
        await client.ask(prompt, prefill=shared.far.target(), cache_namespace=f"fifty {i}")
        for i, prompt in enumerate(prompts)
    ]
    await asyncio.gather(*(answer.wait() for answer in answers))
    assert all(len(answer.tokens) == 4 for answer in answers)
    assert [answer.info.transferred_tokens for answer in answers] == [(len(p) - 1) // 16 * 16 for p in prompts]
    for i in (0, 24, 49):
        assert answers[i].tokens == await local_tokens(client, prompts[i])
    await until_free(shared.near, shared.far)


async def test_a_reader_without_nixl_is_served_over_grpc() -> None:
    async with pair(Setup(role="prefill", transport="nixl"), Setup(transport="grpc")) as (far, _, client):
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert answer.info.transport == "grpc"
        assert answer.info.transferred_tokens == BLOCKS * 16


async def test_a_source_without_nixl_is_read_over_grpc() -> None:
    async with pair(Setup(role="prefill", transport="grpc"), Setup(transport="nixl")) as (far, _, client):
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert answer.info.transport == "grpc"
        assert answer.info.transferred_tokens == BLOCKS * 16


async def test_blocks_travel_while_the_prompt_is_being_computed() -> None:
    async with pair(SLOW) as (far, near, client):
        answer = await client.ask(PROMPT, prefill=far.target())
        await eventually(lambda: near.host.exchange.fetcher.bytes_per_s > 0)
        assert (await far.load())["waiting_prefill_tokens"] > 500
        await answer.wait()
        assert answer.info.transferred_tokens == BLOCKS * 16


async def test_a_prefill_worker_that_dies_costs_time_only(transport: str) -> None:
    async with pair(replace(SLOW, transport=transport)) as (far, near, client):
        expected = await local_tokens(client)
        answer = await client.ask(PROMPT, prefill=far.target())
        await eventually(lambda: near.host.exchange.fetcher.bytes_per_s > 0)
        killed_s = time.monotonic()
        await far.kill()
        await answer.wait()
        assert time.monotonic() - killed_s < 2.0
        assert answer.tokens == expected
        assert 0 < answer.info.transferred_tokens < BLOCKS * 16
        await until_free(near)
        # Later requests fall back as well, and quickly.
        again = await (await client.ask(PROMPT, prefill=far.target(), cache_namespace="c")).wait()
        assert again.tokens == expected and not again.info.transferred_tokens
        await until_free(near)


@pytest.mark.parametrize("ending", [signal.SIGCONT, signal.SIGKILL], ids=["wakes up", "is killed"])
async def test_blocks_of_a_late_read_stay_out_of_use_until_the_peer(
    ending: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp")
    decode = Setup(read_timeout_s=0.4)
    # One large batch, so that the peer is stopped in the middle of a read and not between two.
    prefill = Setup(role="prefill", max_num_batched_tokens=2048, step_s=0.3)
    async with pair(prefill, decode) as (far, near, client):
        expected = await local_tokens(client)
        warm = await (await client.ask(PROMPT[:40], prefill=far.target(), cache_namespace="warm")).wait()
        assert warm.info.transport == "nixl"
        near.host.exchange.fetcher.transports = Freezing(near.host.exchange.fetcher.transports, far.process.pid)
        answer = await client.ask(PROMPT, prefill=far.target())
        await answer.wait()
        assert answer.tokens == expected
        assert not answer.info.transferred_tokens
        await eventually(lambda: near.load.quarantined_blocks == BLOCKS)
        far.signal(ending)
        await until_free(near)


async def test_a_frozen_peer_over_grpc_ends_with_its_deadline() -> None:
    decode = Setup(transport="grpc", read_timeout_s=0.4)
    async with pair(Setup(role="prefill", transport="grpc"), decode) as (far, near, client):
        expected = await local_tokens(client)
        near.host.exchange.fetcher.transports = Freezing(near.host.exchange.fetcher.transports, far.process.pid)
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert answer.tokens == expected
        await until_free(near)


async def test_a_prefill_worker_that_does_not_answer_is_not_waited_for_long() -> None:
    async with pair(Setup(role="prefill"), Setup(read_timeout_s=0.3)) as (far, near, client):
        freeze(far.process.pid)
        started_s = time.monotonic()
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert 0.25 < time.monotonic() - started_s < 2.0
        assert answer.tokens == await local_tokens(client)
        # Nor is it asked again at once.
        before, started_s = failures("avoided"), time.monotonic()
        again = await (await client.ask(PROMPT, prefill=far.target(), cache_namespace="again")).wait()
        assert time.monotonic() - started_s < 0.25
        assert again.tokens == answer.tokens and failures("avoided") == before + 1
        await until_free(near)


async def test_a_prefill_worker_that_stops_computing_is_given_up() -> None:
    async with pair(SLOW, Setup(prefill_timeout_s=0.3)) as (far, near, client):
        answer = await client.ask(PROMPT, prefill=far.target())
        await eventually(lambda: near.host.exchange.fetcher.bytes_per_s > 0)
        freeze(far.process.pid)
        await answer.wait()
        assert answer.tokens == await local_tokens(client)
        assert failures("timeout") > 0


async def test_bytes_with_another_digest_are_not_used(transport: str) -> None:
    """As if the blocks had been given to somebody else before they were read."""
    async with (
        worker(Setup(role="prefill", transport=transport)) as far,
        worker(Setup(transport=transport)) as near,
        decode_client(near.address) as client,
    ):
        expected, before = await local_tokens(client), failures("stale")
        far.runner.spoiled = 40
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert answer.tokens == expected
        assert answer.info.transferred_tokens < 40 * 16
        assert failures("stale") == before + 1
        await until_free(near)
        await eventually(lambda: far.load.free_blocks == far.load.total_blocks)


async def test_a_cell_with_another_secret_exchanges_nothing() -> None:
    async with (
        worker(Setup(role="prefill", transport="grpc", secret="other")) as far,
        worker(Setup(transport="grpc")) as near,
        decode_client(near.address) as client,
    ):
        before = failures("mismatch")
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert answer.tokens == await local_tokens(client)
        assert failures("mismatch") == before + 1
        await eventually(lambda: far.load.free_blocks == far.load.total_blocks)


async def test_a_target_that_cannot_be_used_is_not_asked() -> None:
    async with worker(Setup(transport="grpc")) as near, decode_client(near.address) as client:
        own = near.host.worker_info.kv_fingerprint
        foreign, pushing = target_of("127.0.0.1:1", b"foreign"), target_of("127.0.0.1:1", own)
        pushing.handoff = common.HANDOFF_RENDEZVOUS
        gone = target_of("127.0.0.1:1", own)
        expected = await local_tokens(client)
        for i, (target, reason) in enumerate(((foreign, "fingerprint"), (pushing, "handoff"), (gone, "unavailable"))):
            before = failures(reason)
            answer = await (await client.ask(PROMPT, prefill=target, cache_namespace=str(i))).wait()
            assert answer.tokens == expected
            assert failures(reason) == before + 1
        await until_free(near)


async def test_a_prefill_worker_that_refuses_is_done_without() -> None:
    async with pair(Setup(role="prefill", transport="grpc", max_stagings=0)) as (far, near, client):
        before = failures("resource_exhausted")
        answer = await (await client.ask(PROMPT, prefill=far.target())).wait()
        assert answer.tokens == await local_tokens(client)
        assert failures("resource_exhausted") == before + 1
        await until_free(near, far)


@pytest.mark.parametrize("how", ["a cancel", "a broken stream", "its deadline"])
async def test_a_request_that_ends_while_it_is_fetched_ends_everywhere(how: str) -> None:
    async with (
        worker(replace(SLOW, step_s=0.02)) as far,
        worker(Setup()) as near,
        decode_client(near.address) as client,
    ):
        timeout_s = 0.3 if how == "its deadline" else 0.0
        answer = await client.ask(PROMPT, prefill=far.target(), timeout_s=timeout_s)
        await eventually(lambda: near.host.exchange.fetcher.bytes_per_s > 0)
        if how == "a cancel":
            await client.cancel(answer)
        elif how == "a broken stream":
            client.call.cancel()
        if how != "a broken stream":
            await answer.wait(2)
            assert not answer.tokens
        steps = far.runner.steps
        await eventually(lambda: far.load.free_blocks == far.load.total_blocks)
        if how != "its deadline":
            assert far.runner.steps <= steps + 4, "it was computed on"
        assert far.runner.steps < BLOCKS
        await until_free(near)
        assert not len(far.host.exchange.stagings)


async def test_a_request_cancelled_before_there_was_room_for_it_fetches_nothing() -> None:
    tight = Setup(num_blocks=80, step_s=0.005)
    async with pair(Setup(role="prefill"), tight) as (far, near, client):
        first = await client.ask(PROMPT, max_tokens=200, cache_namespace="a")
        await first.first_token()
        second = await client.ask(PROMPT, prefill=far.target(), cache_namespace="b")
        await eventually(lambda: near.load.waiting_seqs == 1)
        await client.cancel(second)
        await second.wait(2)
        await first.wait()
        await until_free(near, far)


async def test_a_process_that_ends_in_the_middle_of_a_fetch_ends_without_a_further_failure() -> None:
    with pytest.raises(ExceptionGroup) as ended:
        async with worker(SLOW) as far, worker(Setup()) as near, decode_client(near.address) as client:
            await client.ask(PROMPT, prefill=far.target())
            await eventually(lambda: near.host.exchange.fetcher.bytes_per_s > 0)
            raise KeyError("the only reason")
    leaves = ended.value
    while isinstance(leaves, ExceptionGroup):
        assert len(leaves.exceptions) == 1
        leaves = leaves.exceptions[0]
    assert isinstance(leaves, KeyError)


async def test_a_request_cancelled_in_the_instant_of_its_reservation_is_handed_back() -> None:
    setup = Setup(role="prefill", transport="grpc")
    async with worker(setup) as far, worker(Setup(transport="grpc")) as near:
        stream = ClientStream()
        told = near.host.on_step

        def on_step(output: StepOutput) -> None:
            told(output)
            if output.reserved:
                near.host.generations.cancel(stream, 1)  # the fetch is planned, but has not begun

        near.engine._on_step = on_step
        request = DecodeRequest(
            stream_id=1, request_id="r", model="m", token_ids=pack_tokens(PROMPT), max_tokens=4, prefill=far.target()
        )
        near.host.generations.accept(stream, request)
        await eventually(lambda: near.load.free_blocks < near.load.total_blocks or not len(near.host.generations))
        await until_free(near)
        await eventually(lambda: far.load.free_blocks == far.load.total_blocks)


async def test_spans_of_a_request_nest_from_the_gateway_to_the_prefill_worker() -> None:
    parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    async with otlp_sink() as sink:
        telemetry.setup_tracing("test", sink.address)
        try:
            async with (
                worker(Setup(role="prefill", transport="grpc")) as far,
                worker(Setup(transport="grpc")) as near,
                decode_client(near.address) as client,
            ):
                await (await client.ask(PROMPT, prefill=far.target(), traceparent=parent)).wait()
                await until_free(near)
                await eventually(lambda: not len(far.host.exchange.stagings))
        finally:
            await asyncio.to_thread(telemetry.shutdown_tracing)
        spans = {received.name: received.span for received in sink.spans}
    decode, transfer, prefill = spans["decode"], spans["transfer"], spans["prefill"]
    call = next(span for name, span in spans.items() if name.endswith("/Prefill"))
    assert decode.parent_span_id.hex() == "0123456789abcdef"
    assert transfer.parent_span_id == call.parent_span_id == decode.span_id
    assert prefill.parent_span_id == call.span_id
    assert {span.trace_id.hex() for span in spans.values()} == {"0123456789abcdef0123456789abcdef"}


class Freezing:
    """Transports that stop a process for certain before each read of it begins."""

    def __init__(self, inner: Any, pid: int) -> None:
        self._inner = inner
        self._pid = pid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def choose(self, source: Source) -> Any:
        self._chosen = self._inner.choose(source)
        return self

    def read(self, source: Source, local_ids: Sequence[int], remote_ids: Sequence[int]) -> asyncio.Future[None]:
        freeze(self._pid)
        return self._chosen.read(source, local_ids, remote_ids)

    @property
    def name(self) -> str:
        return self._chosen.name
