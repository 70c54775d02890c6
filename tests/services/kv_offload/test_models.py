"""Which workers of its node a kv-offload is for."""

import secrets
from pathlib import Path

from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import member_key
from armature.v1.common_pb2 import MEMBER_STATE_READY, Member
from tests.support.eventually import eventually
from tests.support.running import running

BLOCK_BYTES = 4096


def worker(model: str, node: str, port: int) -> Member:
    member = Member(id=f"{model}-on-{node}", kind="decode-worker", address=f"127.0.0.1:{port}", node=node)
    member.state = MEMBER_STATE_READY
    member.worker.kv_fingerprint = f"blocks of {model}".encode()
    member.worker.model.name, member.worker.model.block_bytes = model, BLOCK_BYTES
    return member


async def test_a_model_that_it_was_told_is_waited_for_on_its_own_node(
    etcd: EtcdClient, etcd_address: str, tmp_path: Path
) -> None:
    namespace = f"models-{secrets.token_hex(4)}"

    async def join(member: Member) -> None:
        await etcd.put(member_key(namespace, member.kind, member.id), member.SerializeToString())

    async def layouts() -> list[bytes]:
        found = await etcd.list(member_key(namespace, "kv-offload", ""))
        return [Member.FromString(entry.value).offload.layout.kv_fingerprint for entry in found.records]

    flags = ("--etcd", etcd_address, "--namespace", namespace, "--transport", "grpc", "--host-bytes", str(1 << 20))
    await join(worker("first", "here", 1))
    await join(worker("second", "elsewhere", 2))
    async with (
        running("services.kv_offload", *flags, "--node", "here", stderr=tmp_path / "any.log"),
        running("services.kv_offload", *flags, "--node", "here", "--model", "second", stderr=tmp_path / "second.log"),
    ):

        async def are(*expected: bytes) -> bool:
            return sorted(await layouts()) == sorted(expected)

        await eventually(lambda: are(b"blocks of first", b""))
        await join(worker("second", "here", 3))
        await eventually(lambda: are(b"blocks of first", b"blocks of second"))
