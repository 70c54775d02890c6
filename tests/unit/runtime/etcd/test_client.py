import asyncio
import time
from pathlib import Path

import pytest

from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import (
    CompactedError,
    EtcdAuthError,
    EtcdError,
    EtcdUnavailableError,
    FutureRevisionError,
    LeaseNotFoundError,
    OutcomeUnknownError,
)
from armature.third_party.etcd.v3 import etcd_pb2 as pb
from tests.support.certificates import Authority
from tests.support.etcd import EtcdServer, unused_address
from tests.support.wire import Wire


def create_once(key: str, value: bytes) -> pb.TxnRequest:
    """Puts a key only if it isn't there."""
    absent = pb.Compare(target=pb.Compare.CREATE, key=key.encode(), create_revision=0)
    put = pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value))
    return pb.TxnRequest(compare=[absent], success=[put])


async def until_answered(client: EtcdClient) -> None:
    """Ask until there is an answer: a connection that was silent for long may just be given up."""
    async with asyncio.timeout(20):
        while True:
            try:
                await client.get("/k")
            except EtcdUnavailableError:
                continue
            return


async def test_a_record_is_read_as_it_was_written(etcd: EtcdClient) -> None:
    revision = await etcd.put("/client/k", b"\x00\xff")
    record = await etcd.get("/client/k")
    assert record is not None
    assert (record.key, record.value, record.create_revision, record.mod_revision) == (
        "/client/k",
        b"\x00\xff",
        revision,
        revision,
    )
    assert await etcd.delete("/client/k")
    assert not await etcd.delete("/client/k")
    assert await etcd.get("/client/k") is None


async def test_a_prefix_ends_where_its_last_character_does(etcd: EtcdClient) -> None:
    for key in ("/pre/a", "/pre/z\u00e9", "/pre0", "/prd"):
        await etcd.put(key, b"")
    assert [record.key for record in (await etcd.list("/pre/")).records] == ["/pre/a", "/pre/z\u00e9"]
    assert await etcd.delete_prefix("/pre/") == 2
    assert await etcd.get("/pre0") is not None


async def test_a_listing_in_pages_is_the_state_at_one_revision(etcd: EtcdClient) -> None:
    for number in range(7):
        await etcd.put(f"/pages/{number}", b"first")
    whole = await etcd.list("/pages/", page_size=3)
    assert [record.key for record in whole.records] == [f"/pages/{number}" for number in range(7)]
    await etcd.put("/pages/3", b"second")
    then = await etcd.list("/pages/", revision=whole.revision, page_size=2)
    assert then.records == whole.records
    assert (await etcd.list("/pages/")).records[3].value == b"second"


async def test_a_revision_that_is_gone_or_to_come_is_told_apart(server: EtcdServer, client: EtcdClient) -> None:
    first = await client.put("/r", b"1")
    last = await client.put("/r", b"2")
    await client.compact(last)
    with pytest.raises(CompactedError):
        await client.list("/r", revision=first)
    with pytest.raises(FutureRevisionError):
        await client.list("/r", revision=last + 1000)


async def test_a_transaction_is_done_once(etcd: EtcdClient) -> None:
    assert (await etcd.txn(create_once("/txn/leader", b"a"))).succeeded
    assert not (await etcd.txn(create_once("/txn/leader", b"b"))).succeeded
    record = await etcd.get("/txn/leader")
    assert record is not None
    assert record.value == b"a"


async def test_a_lease_takes_its_keys_along_and_says_that_it_is_gone(etcd: EtcdClient) -> None:
    lease = await etcd.grant(30)
    await etcd.put("/lease/k", b"", lease_id=lease.lease_id)
    assert await etcd.keep_alive(lease.lease_id) == lease.ttl_s
    await etcd.revoke(lease.lease_id)
    assert await etcd.get("/lease/k") is None
    assert await etcd.keep_alive(lease.lease_id) <= 0
    with pytest.raises(LeaseNotFoundError):
        await etcd.put("/lease/k", b"", lease_id=lease.lease_id)
    with pytest.raises(LeaseNotFoundError):
        await etcd.revoke(lease.lease_id)


async def test_an_endpoint_where_nobody_listens_is_named_at_once() -> None:
    address = unused_address()
    client = EtcdClient([address], timeout_s=30)
    began = time.monotonic()
    with pytest.raises(EtcdUnavailableError, match=f"{address}.*check that etcd runs there"):
        await client.get("/k")
    assert time.monotonic() - began < 10
    await client.close()


@pytest.mark.parametrize("endpoints", [["etcd"], ["127.0.0.1:"], [":2379"], [""], []])
def test_an_endpoint_without_host_and_port_is_refused(endpoints: list[str]) -> None:
    with pytest.raises(EtcdError, match="host:port"):
        EtcdClient(endpoints)


async def test_a_scheme_in_front_of_an_endpoint_is_ignored(etcd_address: str) -> None:
    client = EtcdClient([f"http://{etcd_address}/"], timeout_s=10)
    assert await client.get("/scheme") is None
    await client.close()


async def test_a_dead_endpoint_is_left_for_a_living_one(etcd_address: str) -> None:
    client = EtcdClient([unused_address(), etcd_address, unused_address()], timeout_s=30)
    assert await client.put("/failover", b"1") > 0
    assert client.calls.endpoint.address == etcd_address
    assert (await client.txn(create_once("/failover/txn", b""))).succeeded
    await client.close()


async def test_a_transaction_goes_on_to_an_endpoint_that_can_be_reached(etcd_address: str) -> None:
    client = EtcdClient([unused_address(), etcd_address], timeout_s=30)
    assert (await client.txn(create_once("/failover/unsent", b""))).succeeded
    await client.close()


async def test_calls_to_a_frozen_server_end_at_their_deadline(server: EtcdServer) -> None:
    client = EtcdClient([server.address], timeout_s=0.5)
    await until_answered(client)
    server.freeze()
    began = time.monotonic()
    with pytest.raises(EtcdUnavailableError):
        await client.get("/k")
    with pytest.raises(EtcdUnavailableError):
        await client.keep_alive(1)
    with pytest.raises(OutcomeUnknownError, match="may have been done"):
        await client.txn(create_once("/k", b""))
    assert time.monotonic() - began < 10
    server.thaw()
    await until_answered(client)
    await client.close()


async def test_a_silent_endpoint_is_left_for_a_living_one(etcd_address: str) -> None:
    async with Wire.to(etcd_address) as wire:
        client = EtcdClient([wire.address, etcd_address], timeout_s=2)
        await client.put("/silent", b"1")
        assert client.calls.endpoint.address == wire.address
        wire.silence()
        assert await client.get("/silent") is not None
        assert client.calls.endpoint.address == etcd_address
        await client.close()


async def test_a_token_that_ended_is_replaced_unnoticed(server: EtcdServer) -> None:
    await server.require_password("secret")
    client = EtcdClient([server.address], user="root", password="secret", timeout_s=10)
    await client.put("/auth", b"1")
    await server.restart()  # etcd forgets its tokens
    lease = await client.grant(30)
    assert await client.keep_alive(lease.lease_id) > 0
    record = await client.get("/auth")
    assert record is not None
    assert record.value == b"1"
    await client.close()


async def test_wrong_credentials_are_named_as_the_cause(server: EtcdServer) -> None:
    await server.require_password("secret")
    for user, password in (("root", "wrong"), ("", ""), ("nobody", "secret")):
        client = EtcdClient([server.address], user=user, password=password, timeout_s=10)
        with pytest.raises(EtcdAuthError, match="etcd_user"):
            await client.get("/auth")
        await client.close()


async def test_a_user_is_no_hindrance_where_etcd_asks_for_none(etcd_address: str) -> None:
    client = EtcdClient([etcd_address], user="root", password="secret", timeout_s=10)
    assert await client.get("/nobody/asked") is None
    await client.close()


async def test_only_certificates_of_the_cell_are_let_in(tmp_path: Path) -> None:
    ours = Authority(tmp_path).issue("member")
    strangers = Authority(tmp_path, "strangers").issue("stranger")
    server = EtcdServer(tmp_path / "server", tls=ours)
    await server.start()
    try:
        client = EtcdClient([server.address], tls=ours, timeout_s=10)
        assert await client.put("/tls", b"1") > 0
        await client.close()
        for tls in (strangers, None):
            client = EtcdClient([server.address], tls=tls, timeout_s=2)
            with pytest.raises(EtcdUnavailableError):
                await client.get("/tls")
            await client.close()
    finally:
        await server.kill()
