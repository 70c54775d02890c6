"""Fixtures of the runtime's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from armature.runtime.etcd import EtcdClient
from tests.support.etcd import EtcdServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EtcdServer]:
    """An etcd of the test's own, to be killed, frozen or wiped."""
    server = EtcdServer(tmp_path / "server")
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def client(server: EtcdServer) -> AsyncIterator[EtcdClient]:
    """A client of the test's own etcd, quick to give up."""
    client = EtcdClient([server.address], timeout_s=1.0)
    yield client
    await client.close()
