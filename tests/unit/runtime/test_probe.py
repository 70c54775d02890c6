"""What a container's health check finds out."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from armature.runtime import probe
from armature.runtime.processes import free_port
from armature.runtime.server import RpcServer
from armature.runtime.settings import CommonSettings
from armature.runtime.tls import TlsFiles
from tests.support.certificates import Authority


async def complaint(port: int, **settings: Any) -> str:
    return await asyncio.to_thread(probe.complaint, CommonSettings(port=port, **settings))


@pytest.fixture
async def server() -> AsyncIterator[RpcServer]:
    server = RpcServer("127.0.0.1")
    await server.start()
    yield server
    await server.stop()


async def test_a_service_that_serves_is_healthy(server: RpcServer) -> None:
    server.set_serving(True)
    assert await complaint(server.port) == ""
    assert await complaint(server.port, host="0.0.0.0") == ""


async def test_one_that_starts_or_drains_is_not(server: RpcServer) -> None:
    assert "NOT_SERVING" in await complaint(server.port)


async def test_one_that_is_not_there_is_not() -> None:
    assert "gives no answer" in await complaint(free_port())


async def test_with_mutual_tls_it_shows_the_members_own_certificate(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("member", dns_names=("member.cell",), address="")
    tls = TlsFiles(files.cert, files.key, files.ca, name="member.cell")
    server = RpcServer("127.0.0.1", tls=tls)
    await server.start()
    server.set_serving(True)
    try:
        shown = {"tls_cert": tls.cert, "tls_key": tls.key, "tls_ca": tls.ca}
        assert await complaint(server.port, tls_name="member.cell", **shown) == ""
        assert "gives no answer" in await complaint(server.port)
    finally:
        await server.stop()


def test_it_says_what_it_can_not_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert "set --port" in str(probe.main([]))
    assert "expected" in str(probe.main(["--port", "many"]))
