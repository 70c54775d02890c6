"""A real etcd for tests: one that all tests share, and ones that a test may kill, freeze or wipe."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from armature.runtime.etcd import EtcdClient
from armature.runtime.processes import Child, free_port, start_etcd
from armature.runtime.tls import TlsFiles


class EtcdServer:
    """An etcd that keeps its address, and its data unless wiped, when it is started again."""

    def __init__(self, folder: Path, *arguments: str, tls: TlsFiles | None = None) -> None:
        self.folder = folder
        self.arguments = arguments
        self.tls = tls
        self.port = 0
        self.child: Child | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.child = await start_etcd(self.folder, port=self.port, arguments=self.arguments, tls=self.tls)
        self.port = int(self.child.address.rpartition(":")[2])

    async def kill(self) -> None:
        if self.child is not None:
            await self.child.kill()

    async def restart(self) -> None:
        await self.kill()
        await self.start()

    async def wipe_and_restart(self) -> None:
        await self.kill()
        await asyncio.to_thread(shutil.rmtree, self.folder / "etcd")
        await self.start()

    def freeze(self) -> None:
        assert self.child is not None
        self.child.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.child is not None
        self.child.signal(signal.SIGCONT)

    @asynccontextmanager
    async def client(self, **settings: Any) -> AsyncIterator[EtcdClient]:
        """A client that is patient, so that no write is given up and repeated though it was done."""
        client = EtcdClient([self.address], tls=self.tls, timeout_s=20.0, **settings)
        try:
            yield client
        finally:
            await client.close()

    async def require_password(self, password: str) -> None:
        """Make the user root and turn authentication on. It can't be turned off with the client that we have."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            # AuthUserAddRequest{name, password}, AuthUserGrantRoleRequest{user, role}, AuthEnableRequest{}
            for method, *fields in (("UserAdd", "root", password), ("UserGrantRole", "root", "root"), ("AuthEnable",)):
                request = b"".join(
                    bytes([number << 3 | 2, len(text)]) + text.encode() for number, text in enumerate(fields, 1)
                )
                call = channel.unary_unary(f"/etcdserverpb.Auth/{method}", request_serializer=bytes)
                await call(request, timeout=10)


@pytest.fixture(scope="session")
async def etcd_address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of an etcd that all tests share: use keys of your own."""
    child = await start_etcd(tmp_path_factory.mktemp("etcd"))
    yield child.address
    await child.kill()


@pytest.fixture
async def etcd(etcd_address: str) -> AsyncIterator[EtcdClient]:
    """A client of the shared etcd."""
    client = EtcdClient([etcd_address], timeout_s=10.0)
    yield client
    await client.close()


def unused_address() -> str:
    """An address at which nobody listens."""
    return f"127.0.0.1:{free_port()}"
