"""The life of a service process, seen from outside: what it prints, what etcd and clients see, how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from armature.runtime.channels import ChannelPool
from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import MemberChange, MembershipView, member_key
from armature.runtime.processes import Child, start_etcd
from armature.v1 import kv_index_pb2, kv_index_pb2_grpc
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, MEMBER_STATE_READY
from tests.support.certificates import Authority
from tests.support.eventually import eventually
from tests.support.running import Running, running

MODULE = "tests.support.demo_service"

Start = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture(scope="module")
async def etcd(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Child]:
    child = await start_etcd(tmp_path_factory.mktemp("etcd"))
    yield child
    await child.stop()


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> str:
    return re.sub(r"\W", "-", request.node.name)


@pytest.fixture
def start(etcd: Child, namespace: str, tmp_path: Path) -> Start:
    def start_one(*flags: str, ready: bool = True, name: str = "demo") -> AbstractAsyncContextManager[Running]:
        common = ("--etcd", etcd.address, "--namespace", namespace, "--lease-ttl-s", "2")
        return running(MODULE, *common, *flags, stderr=tmp_path / f"{name}.stderr", ready=ready)

    return start_one


@pytest.fixture
async def channels() -> AsyncIterator[ChannelPool]:
    pool = ChannelPool()
    yield pool
    await pool.close()


class Watched:
    """The cell as another member sees it, with everything that happened."""

    def __init__(self) -> None:
        self.changes: list[MemberChange] = []
        self._more = asyncio.Event()

    def note(self, change: MemberChange) -> None:
        self.changes.append(change)
        self._more.set()

    async def until(self, condition: Callable[[MemberChange], bool]) -> MemberChange:
        async with asyncio.timeout(10):
            while not (found := [change for change in self.changes if condition(change)]):
                self._more.clear()
                await self._more.wait()
        return found[0]


@asynccontextmanager
async def watching(etcd: Child, namespace: str) -> AsyncIterator[Watched]:
    client, watched = EtcdClient([etcd.address]), Watched()
    view = MembershipView(client, namespace, on_change=watched.note)
    task = asyncio.create_task(view.run())
    await view.loaded()
    try:
        yield watched
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def ask(channels: ChannelPool, address: str, what: bytes, timeout_s: float = 5.0) -> int:
    stub = kv_index_pb2_grpc.KvIndexStub(channels.get(address))
    request = kv_index_pb2.MatchRequest(sequence_hashes=what)
    return (await stub.Match(request, timeout=timeout_s)).indexed_blocks


async def is_serving(channels: ChannelPool, address: str) -> bool:
    stub = health_pb2_grpc.HealthStub(channels.get(address))
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    return answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_ready_service_is_known_to_the_cell_and_says_where_it_is(
    etcd: Child, namespace: str, start: Start, channels: ChannelPool
) -> None:
    async with watching(etcd, namespace) as watched, start() as demo:
        member = (await watched.until(lambda change: change.kind == "joined")).member
        assert demo.member_id == member.id
        assert member.id.startswith("demo-")
        assert (member.kind, member.state, member.worker.num_blocks) == ("demo", MEMBER_STATE_READY, 3)
        assert member.address == demo.address("grpc")
        assert member.metrics_address == demo.address("metrics")
        assert member.pid == demo.process.pid
        assert member.epoch == await ask(channels, member.address, b"")
        assert demo.address("http") == "h:1"
        assert await is_serving(channels, member.address)

        await ask(channels, member.address, b"update")
        updated = await watched.until(lambda change: change.kind == "updated")
        assert updated.member.worker.num_blocks == 7

        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://{demo.address('metrics')}/metrics")).text
        for sample in ("armature_build_info{", "process_resident_memory_bytes ", "armature_registered 1.0"):
            assert sample in text
        assert 'armature_rpc_handled_total{code="OK",method="/armature.v1.KvIndex/Match"}' in text


async def test_sigterm_drains_before_the_service_goes(
    etcd: Child, namespace: str, start: Start, channels: ChannelPool
) -> None:
    async with watching(etcd, namespace) as watched, start() as demo:
        stub = kv_index_pb2_grpc.KvIndexStub(channels.get(demo.address()))
        stream = stub.Follow(kv_index_pb2.FollowRequest(), timeout=20)
        assert (await stream.read()).reset

        demo.signal(signal.SIGTERM)
        await watched.until(lambda change: change.member.state == MEMBER_STATE_DRAINING)
        assert not await is_serving(channels, demo.address())
        assert demo.process.returncode is None
        assert [change.kind for change in watched.changes] == ["joined", "updated"]

        await ask(channels, demo.address(), b"release")
        assert (await stream.read()).complete
        assert await stream.code() == grpc.StatusCode.OK
        await watched.until(lambda change: change.kind == "left")
        assert await demo.exit_status() == 0
    assert "Traceback" not in demo.stderr


async def test_draining_ends_when_its_time_is_up(
    etcd: Child, namespace: str, start: Start, channels: ChannelPool
) -> None:
    async with watching(etcd, namespace) as watched, start("--drain-timeout-s", "0.3") as demo:
        stream = kv_index_pb2_grpc.KvIndexStub(channels.get(demo.address())).Follow(kv_index_pb2.FollowRequest())
        await stream.read()
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status() == 0
        await watched.until(lambda change: change.kind == "left")
        with pytest.raises(grpc.aio.AioRpcError):
            await stream.read()
    assert "not drained after 0." in demo.stderr


async def test_a_second_signal_ends_the_draining_at_once(
    etcd: Child, namespace: str, start: Start, channels: ChannelPool
) -> None:
    async with watching(etcd, namespace) as watched, start() as demo:
        stream = kv_index_pb2_grpc.KvIndexStub(channels.get(demo.address())).Follow(kv_index_pb2.FollowRequest())
        await stream.read()
        demo.signal(signal.SIGINT)
        await watched.until(lambda change: change.member.state == MEMBER_STATE_DRAINING)
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status(timeout_s=5) == 1
        await watched.until(lambda change: change.kind == "left")
        stream.cancel()
    assert "unfinished requests are lost" in demo.stderr


async def test_a_second_signal_also_ends_an_app_that_hangs_after_serving(
    etcd: Child, namespace: str, start: Start
) -> None:
    async with watching(etcd, namespace) as watched, start("--linger") as demo:
        demo.signal(signal.SIGTERM)
        await watched.until(lambda change: change.kind == "left")
        assert demo.process.returncode is None
        await eventually(lambda: "lingering" in demo.stderr)
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status(timeout_s=5) == 1


async def test_a_task_that_crashes_ends_the_process_with_its_reason_and_takes_the_record_along(
    etcd: Child, namespace: str, start: Start, channels: ChannelPool
) -> None:
    async with start("--log-format", "json", "--lease-ttl-s", "60") as demo:
        await ask(channels, demo.address(), b"crash")
        assert await demo.exit_status() == 1
    client = EtcdClient([etcd.address])
    assert await client.get(member_key(namespace, "demo", demo.member_id)) is None  # though the lease had a minute left
    await client.close()
    entries = [json.loads(line) for line in demo.stderr.splitlines()]
    fatal = [entry for entry in entries if entry["level"] == "critical"]
    assert len(fatal) == 1
    assert fatal[0]["message"] == "the process ends: RuntimeError: the engine has died"
    assert "in crash" in fatal[0]["exception"]


async def test_an_app_that_fails_to_start_is_told_with_its_traceback(start: Start) -> None:
    async with start("--crash", "start") as demo:
        assert demo.addresses is None
        assert await demo.exit_status() == 1
    assert "the process ends: RuntimeError: no weights" in demo.stderr
    assert "Traceback" in demo.stderr


async def test_a_signal_during_the_start_ends_the_process(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        flags = ("--etcd", f"127.0.0.1:{silent.getsockname()[1]}", "--etcd-timeout-s", "60")
        async with running(MODULE, *flags, stderr=tmp_path / "stderr", ready=False) as demo:
            # It has connected, so its signal handlers are there.
            connection, _ = await asyncio.to_thread(silent.accept)
            demo.signal(signal.SIGTERM)
            assert await demo.exit_status(timeout_s=10) == 0
            connection.close()


async def test_a_second_signal_ends_a_start_that_hangs_in_a_thread(start: Start) -> None:
    async with start("--crash", "thread", ready=False) as demo:
        await eventually(lambda: "loading" in demo.stderr)
        demo.signal(signal.SIGTERM)
        await eventually(lambda: "SIGTERM: stopping" in demo.stderr)
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status(timeout_s=10) == 1


async def refused(demo: Running, status: int) -> str:
    """The one line on stderr of a service that did not start."""
    assert await demo.exit_status() == status
    assert demo.addresses is None
    lines = demo.stderr.splitlines()
    assert len(lines) == 1, demo.stderr
    return lines[0]


async def test_wrong_settings_are_one_line_and_status_2(start: Start) -> None:
    async with start("--port", "many") as demo:
        assert await refused(demo, 2) == "demo: port is 'many' in flag --port; expected an integer"


async def test_an_absent_etcd_is_one_line_and_status_1(tmp_path: Path) -> None:
    flags = ("--etcd", "127.0.0.1:1", "--etcd-timeout-s", "0.5")
    async with running(MODULE, *flags, stderr=tmp_path / "stderr") as demo:
        said = await refused(demo, 1)
    assert said == "demo: no etcd at 127.0.0.1:1 (tried for 0.5 s): start it or set --etcd"


async def test_an_etcd_that_comes_a_little_late_is_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    flags = ("--etcd", f"127.0.0.1:{port}", "--etcd-timeout-s", "20")
    async with running(MODULE, *flags, stderr=tmp_path / "stderr", ready=False) as demo:
        late = await start_etcd(tmp_path / "etcd", port=port)
        await demo.read_ready()
        assert demo.address()
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status() == 0
        await late.stop()


@pytest.mark.parametrize("which", ["--port", "--metrics-port"])
async def test_a_taken_port_is_one_line_and_status_1(start: Start, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with start(which, str(port)) as demo:
            said = await refused(demo, 1)
    assert f"127.0.0.1:{port}" in said
    assert f"set another {which}" in said


async def test_metrics_can_be_turned_off(start: Start) -> None:
    async with start("--metrics-port", "-1") as demo:
        assert demo.addresses is not None
        assert "metrics" not in demo.addresses


async def test_traffic_goes_on_while_etcd_is_away(tmp_path: Path, channels: ChannelPool) -> None:
    own = await start_etcd(tmp_path / "etcd")
    flags = ("--etcd", own.address, "--lease-ttl-s", "2", "--drain-timeout-s", "5")
    async with running(MODULE, *flags, stderr=tmp_path / "stderr") as demo:
        os.kill(own.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while "lease in etcd lost" not in demo.stderr:
                await ask(channels, demo.address(), b"")
                await asyncio.sleep(0.05)
        assert await is_serving(channels, demo.address())
        demo.signal(signal.SIGTERM)
        assert await demo.exit_status(timeout_s=10) == 0
    await own.stop()


async def test_services_and_etcd_speak_mutual_tls(tmp_path: Path, namespace: str) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("member")
    own = await start_etcd(tmp_path / "etcd", tls=files)
    tls = ("--tls-cert", str(files.cert), "--tls-key", str(files.key), "--tls-ca", str(files.ca))
    flags = ("--etcd", f"https://{own.address}", "--namespace", namespace, *tls)
    member, stranger = ChannelPool(files), ChannelPool()
    async with running(MODULE, *flags, stderr=tmp_path / "stderr") as demo:
        assert await ask(member, demo.address(), b"") > 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(stranger, demo.address(), b"")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await member.close()
    await stranger.close()
    await own.stop()


async def test_a_service_on_every_interface_advertises_the_one_that_leads_to_etcd(start: Start) -> None:
    async with start("--host", "0.0.0.0") as demo:
        assert demo.address("grpc").startswith("127.0.0.1:")
        assert demo.address("metrics").startswith("127.0.0.1:")


async def test_a_member_may_keep_its_name(start: Start) -> None:
    async with start("--id", "demo-7", "--advertise-host", "localhost") as demo:
        assert demo.member_id == "demo-7"
        assert demo.address("grpc").startswith("localhost:")


async def test_a_process_that_strangers_can_reach_says_so_at_its_start(start: Start) -> None:
    async with start("--host", "0.0.0.0", "--cluster-secret", "s") as service:
        assert "whoever reaches 0.0.0.0 may use this process" in service.stderr
    async with start() as service:
        assert "warning" not in service.stderr
