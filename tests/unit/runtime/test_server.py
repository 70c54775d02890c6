"""A server as its clients see it: health, reflection, deadlines, errors, mutual TLS, taken ports."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython.cygrpc import _ServerStoppedError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import REGISTRY

from armature.runtime.addresses import join_host_port, split_host_port
from armature.runtime.channels import ChannelPool
from armature.runtime.connection_age import ConnectionAge
from armature.runtime.errors import (
    CallerError,
    NotFoundError,
    OverloadedError,
    PeerError,
    StartError,
    UnavailableError,
)
from armature.runtime.server import RpcServer
from armature.runtime.tls import TlsFiles
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.uncollected import living, no_collector

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Handle = Callable[[Any], Awaitable[None]]


async def nothing(context: Any) -> None:
    pass


class Index(kv_index_pb2_grpc.KvIndexServicer):
    """Does what a test wants before it answers."""

    def __init__(self, handle: Handle = nothing) -> None:
        self.handle = handle
        self.ended = asyncio.Event()

    async def Match(self, request: kv_index_pb2.MatchRequest, context: Any) -> kv_index_pb2.MatchResponse:
        try:
            await self.handle(context)
        finally:
            self.ended.set()
        return kv_index_pb2.MatchResponse(indexed_blocks=len(request.sequence_hashes))

    async def Follow(
        self, request: kv_index_pb2.FollowRequest, context: Any
    ) -> AsyncIterator[kv_index_pb2.IndexUpdate]:
        try:
            yield kv_index_pb2.IndexUpdate(reset=True)
            await self.handle(context)
            yield kv_index_pb2.IndexUpdate(complete=True)
        finally:
            self.ended.set()


@asynccontextmanager
async def serving(
    index: Index, *, tls: TlsFiles | None = None, age: ConnectionAge | None = None
) -> AsyncIterator[RpcServer]:
    server = RpcServer("127.0.0.1", tls=tls, connection_age=age)
    server.add(kv_index_pb2_grpc.add_KvIndexServicer_to_server, index, "armature.v1.KvIndex")
    await server.start()
    server.set_serving(True)
    try:
        yield server
    finally:
        await server.stop(0)


@asynccontextmanager
async def connected(index: Index, *, tls: TlsFiles | None = None) -> AsyncIterator[grpc.aio.Channel]:
    pool = ChannelPool(tls)
    async with serving(index, tls=tls) as server:
        try:
            yield pool.get(server.address)
        finally:
            await pool.close()


async def match(channel: grpc.aio.Channel, timeout_s: float | None = 5.0) -> kv_index_pb2.MatchResponse:
    request = kv_index_pb2.MatchRequest(sequence_hashes=b"12345678")
    return await kv_index_pb2_grpc.KvIndexStub(channel).Match(request, timeout=timeout_s)


async def test_health_follows_the_process_for_every_service_it_serves() -> None:
    pool = ChannelPool()
    async with serving(Index()) as server:
        stub = health_pb2_grpc.HealthStub(pool.get(server.address))
        for name in ("", "armature.v1.KvIndex"):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND

        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert (await watch.read()).status == SERVING
        assert (await unknown.read()).status == SERVICE_UNKNOWN
        server.set_serving(False)
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        unknown.cancel()
        await pool.close()


async def test_reflection_lists_the_services() -> None:
    async with connected(Index()) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {"armature.v1.KvIndex", "grpc.health.v1.Health"} <= names
        call.cancel()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CallerError("no such field"), grpc.StatusCode.INVALID_ARGUMENT, "no such field"),
        (NotFoundError("no model x"), grpc.StatusCode.NOT_FOUND, "no model x"),
        (UnavailableError("draining"), grpc.StatusCode.UNAVAILABLE, "draining"),
        (OverloadedError("queue full", retry_after_s=1.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full"),
        (PeerError("worker w sent block 3 twice"), grpc.StatusCode.INTERNAL, "worker w sent block 3 twice"),
        (TimeoutError(), grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed"),
        (KeyError("secret detail"), grpc.StatusCode.INTERNAL, "internal error (KeyError)"),
    ],
)
async def test_an_error_becomes_the_status_of_whom_it_blames(
    error: Exception, code: grpc.StatusCode, message: str
) -> None:
    async def fail(context: Any) -> None:
        raise error

    async with connected(Index(fail)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await match(channel)
        stream = kv_index_pb2_grpc.KvIndexStub(channel).Follow(kv_index_pb2.FollowRequest(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            async for _ in stream:
                pass
    for caught in (unary.value, streamed.value):
        assert (caught.code(), caught.details()) == (code, message)
        retry_after = dict(caught.trailing_metadata()).get("retry-after-s")
        assert retry_after == ("1.5" if isinstance(error, OverloadedError) else None)


@pytest.mark.parametrize(
    "method", ["unary_unary /armature.v1.KvIndex/Match", "unary_stream /armature.v1.KvIndex/Follow"]
)
async def test_a_request_that_is_no_message_blames_the_caller(method: str, caplog: pytest.LogCaptureFixture) -> None:
    kind, path = method.split()
    index = Index()
    async with connected(index) as channel:
        call = getattr(channel, kind)(path)(b"\xff no message", timeout=5)
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not index.ended.is_set()
    assert not caplog.records


async def test_a_status_that_the_handler_sets_itself_stays() -> None:
    async def abort(context: Any) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is one")

    async with connected(Index(abort)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await match(channel)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ALREADY_EXISTS, "there is one")
        labels = {"method": "/armature.v1.KvIndex/Match", "code": "ALREADY_EXISTS"}
        # The answer leaves before the handler has returned.
        await eventually(lambda: REGISTRY.get_sample_value("armature_rpc_handled_total", labels) == 1)


async def test_a_nested_call_passes_on_that_it_is_unavailable_but_never_blames_our_caller() -> None:
    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    async with connected(Index(hang)) as inner:

        async def ask_without_time(context: Any) -> None:
            await match(inner, timeout_s=0.01)

        async def ask_for_nonsense(context: Any) -> None:
            await inner.unary_unary("/armature.v1.KvIndex/Nothing")(b"", timeout=5)

        for handle, code in (
            (ask_without_time, grpc.StatusCode.DEADLINE_EXCEEDED),
            (ask_for_nonsense, grpc.StatusCode.INTERNAL),
        ):
            async with connected(Index(handle)) as outer:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await match(outer)
                assert caught.value.code() == code


async def test_a_call_without_a_deadline_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armature.runtime.boundary.DEFAULT_DEADLINE_S", 0.05)

    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    index = Index(hang)
    async with connected(index) as channel, asyncio.timeout(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await match(channel, timeout_s=None)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await index.ended.wait()


async def test_the_callers_deadline_ends_the_handler() -> None:
    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    index = Index(hang)
    async with connected(index) as channel, asyncio.timeout(5):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await match(channel, timeout_s=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await index.ended.wait()


async def test_a_client_that_leaves_ends_the_streaming_handler() -> None:
    async def hang(context: Any) -> None:
        await asyncio.Event().wait()

    index = Index(hang)
    async with connected(index) as channel, asyncio.timeout(5):
        stream = kv_index_pb2_grpc.KvIndexStub(channel).Follow(kv_index_pb2.FollowRequest())
        await stream.read()
        stream.cancel()
        await index.ended.wait()


async def test_a_server_is_idle_when_its_last_unary_call_has_ended() -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Any) -> None:
        entered.set()
        await go_on.wait()

    pool = ChannelPool()
    async with serving(Index(handle)) as server, asyncio.timeout(5):
        await server.wait_idle()
        call = asyncio.create_task(match(pool.get(server.address)))
        await entered.wait()
        idle = asyncio.create_task(server.wait_idle())
        await asyncio.sleep(0)
        assert not idle.done()
        go_on.set()
        await call
        await idle
        await pool.close()


async def test_messages_up_to_64_mib_pass_and_larger_ones_are_refused() -> None:
    async with connected(Index()) as channel:
        stub = kv_index_pb2_grpc.KvIndexStub(channel)
        large = kv_index_pb2.MatchRequest(sequence_hashes=bytes(60 << 20))
        assert (await stub.Match(large, timeout=30)).indexed_blocks == 60 << 20
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Match(kv_index_pb2.MatchRequest(sequence_hashes=bytes(65 << 20)), timeout=30)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_taken_port_is_one_clear_error() -> None:
    async with serving(Index()) as first:
        with pytest.raises(StartError) as caught:
            await RpcServer("127.0.0.1", first.port).start()
    why = "(Address already in use): set another --port or --host"
    assert str(caught.value) == f"can't listen on {first.address} {why}"


async def test_a_host_of_another_machine_is_one_clear_error() -> None:
    with pytest.raises(StartError) as caught:
        await RpcServer("192.0.2.1").start()
    assert "192.0.2.1:0 (Cannot assign requested address)" in str(caught.value)


async def test_the_advertised_host_stands_in_the_address() -> None:
    server = RpcServer("127.0.0.1", advertise_host="node-7")
    await server.start()
    assert server.address == f"node-7:{server.port}"
    await server.stop(0)


@pytest.mark.parametrize(("host", "address"), [("node-7", "node-7:80"), ("::1", "[::1]:80")])
def test_ipv6_addresses_stand_in_brackets(host: str, address: str) -> None:
    assert join_host_port(host, 80) == address
    assert split_host_port(address) == (host, 80)


@pytest.mark.parametrize("text", ["", "80", ":80", "node:", "node:http"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_host_port(text)


async def test_mutual_tls_lets_members_in(tmp_path: Path) -> None:
    tls = Authority(tmp_path).issue("member")
    async with connected(Index(), tls=tls) as channel:
        assert (await match(channel)).indexed_blocks == 8


async def test_mutual_tls_refuses_clients_without_a_certificate_of_the_cell(tmp_path: Path) -> None:
    cell, strangers = Authority(tmp_path), Authority(tmp_path, "strangers")
    stranger = strangers.issue("stranger")
    # Knows whom to trust, but shows a certificate that the cell did not sign, or none.
    forged = grpc.ssl_channel_credentials(cell.ca.read_bytes(), stranger.key.read_bytes(), stranger.cert.read_bytes())
    bare = grpc.ssl_channel_credentials(cell.ca.read_bytes())
    async with serving(Index(), tls=cell.issue("member")) as server:
        for credentials in (bare, forged):
            async with grpc.aio.secure_channel(server.address, credentials) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await match(channel)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await match(channel)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_members_refuse_servers_that_the_cell_did_not_sign(tmp_path: Path) -> None:
    cell, strangers = Authority(tmp_path), Authority(tmp_path, "strangers")
    pool = ChannelPool(cell.issue("member"))
    async with serving(Index(), tls=strangers.issue("stranger")) as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await match(pool.get(server.address))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await pool.close()


async def test_certificates_may_carry_one_name_for_the_whole_cell_instead_of_addresses(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("member", dns_names=("member.cell",), address="")
    named = TlsFiles(issued.cert, issued.key, issued.ca, name="member.cell")
    async with connected(Index(), tls=named) as channel:
        assert (await match(channel)).indexed_blocks == 8


async def test_a_missing_certificate_file_is_named(tmp_path: Path) -> None:
    absent = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
    with pytest.raises(StartError) as caught:
        ChannelPool(absent)
    assert str(caught.value).startswith(f"can't read the TLS file {tmp_path}/")


async def test_a_stream_that_the_stop_of_the_server_ends_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def read_after_the_stop(context: Any) -> None:
        raise _ServerStoppedError("Server already stopped.")  # which of two ends a read sees first is a race in gRPC

    index = Index(read_after_the_stop)
    async with connected(index) as channel:
        call = kv_index_pb2_grpc.KvIndexStub(channel).Follow(kv_index_pb2.FollowRequest(), timeout=5)
        await call.read()
        await index.ended.wait()
        call.cancel()
    assert not [record for record in caplog.records if record.name == "armature.runtime.boundary"]


async def refuse(context: Any) -> None:
    raise CallerError("no")


async def abort(context: Any) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, "no")


@pytest.mark.parametrize("handle", [nothing, refuse, abort])
async def test_a_call_is_freed_when_it_has_ended_however_it_has_ended(handle: Handle) -> None:
    async with connected(Index(handle)) as channel:
        stub = kv_index_pb2_grpc.KvIndexStub(channel)

        async def call_each() -> None:
            with suppress(grpc.aio.AioRpcError):
                await match(channel)
            with suppress(grpc.aio.AioRpcError):
                async for _ in stub.Follow(kv_index_pb2.FollowRequest(), timeout=5):
                    pass

        await call_each()
        with no_collector():
            before = living("RPCState")
            for _ in range(10):
                await call_each()
            await eventually(
                lambda: living("RPCState")["RPCState"] <= before["RPCState"], 5.0, what="the calls are gone"
            )


async def test_clients_connect_anew_at_a_connections_age_and_notice_nothing() -> None:
    peers: set[str] = set()

    async def remember(context: Any) -> None:
        peers.add(context.peer())

    async with (
        serving(Index(remember), age=ConnectionAge(age_s=0.2, grace_s=5.0)) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):

        async def has_come_anew() -> bool:
            return (await match(channel)).indexed_blocks == 8 and len(peers) > 1

        await eventually(has_come_anew)
