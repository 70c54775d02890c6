"""Several gateway processes on one port: all serve, one may die, none is left."""

import os
import re
import secrets
import signal
from pathlib import Path

import httpx

from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import member_key
from armature.v1.common_pb2 import Member
from tests.services.gateway.fakes import listening
from tests.services.gateway.harness import MODEL, TEXT, make_worker
from tests.support.eventually import eventually
from tests.support.running import running

NAMESPACE = f"gateways-{secrets.token_hex(4)}"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


async def test_two_share_a_port_and_a_dead_one_is_replaced(etcd: EtcdClient, etcd_address: str, tmp_path: Path) -> None:
    worker = make_worker()
    prefix = member_key(NAMESPACE, "gateway", "")

    async def members() -> dict[str, int]:
        found = await etcd.list(prefix)
        records = [Member.FromString(entry.value) for entry in found.records]
        return {record.id: record.pid for record in records}

    flags = ("--etcd", etcd_address, "--namespace", NAMESPACE, "--http-port", "0", "--processes", "2")
    async with listening(worker), running("services.gateway", *flags, stderr=tmp_path / "gateway.log") as parent:
        url = f"http://{parent.address('http')}"
        await etcd.put(member_key(NAMESPACE, "decode-worker", worker.worker_id), worker.member.SerializeToString())

        async def asked() -> str:
            """Who answers on a new connection, if the answer is right."""
            async with httpx.AsyncClient(base_url=url, timeout=15) as client:
                metrics = (await client.get("/metrics")).text
                response = await client.post("/v1/chat/completions", json=BODY)
            if response.status_code != 200:
                return ""
            assert response.json()["choices"][0]["message"]["content"] == TEXT
            found = re.search(r'armature_build_info\{.*member="([^"]+)"', metrics)
            assert found is not None
            return found[1]

        async def all_answer(expected: set[str]) -> None:
            seen: set[str] = set()

            async def are_seen() -> bool:
                seen.add(await asked())
                return expected <= seen

            await eventually(are_seen, what=f"answers of {expected}")

        first = await members()
        assert sorted(parent.member_id.split(",")) == sorted(first)
        await all_answer(set(first))
        victim, survivor = first
        os.kill(first[victim], signal.SIGKILL)
        assert await asked() in (survivor, "")

        async def is_replaced() -> bool:
            return len((await members()).keys() - first.keys()) == 1

        await eventually(is_replaced, what="another process")
        await all_answer({survivor, *((await members()).keys() - first.keys())})
        parent.signal(signal.SIGTERM)
        assert await parent.exit_status() == 0
        assert not (await members()).keys() - {victim}  # the dead one's lease may still run
        await etcd.delete(member_key(NAMESPACE, "decode-worker", worker.worker_id))


async def test_what_keeps_one_from_starting_ends_all(tmp_path: Path) -> None:
    flags = ("--etcd", "127.0.0.1:1", "--etcd-timeout-s", "1", "--http-port", "0", "--processes", "2")
    async with running("services.gateway", *flags, stderr=tmp_path / "gateway.log", ready=False) as parent:
        assert await parent.exit_status() == 1
        assert "etcd" in parent.stderr
        assert "could not start" in parent.stderr
