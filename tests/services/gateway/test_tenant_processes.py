"""Two gateway processes of one cell: the same keys from etcd, and limits that they hold together through one Redis."""

import asyncio
import secrets
from pathlib import Path
from typing import Any

import httpx

from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import member_key
from armature.runtime.processes import start_valkey
from tests.services.gateway.fakes import listening
from tests.services.gateway.harness import MODEL, make_worker
from tests.support.eventually import eventually
from tests.support.running import running

ADMIN_KEY = "an admin key that nobody guesses"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
BODY = {"model": MODEL, "prompt": "x", "max_tokens": 3}
LIMIT = 20


async def test_keys_limits_and_use_are_the_cells_and_outlive_redis(
    etcd: EtcdClient, etcd_address: str, tmp_path: Path
) -> None:
    valkey = await start_valkey(tmp_path / "valkey")
    namespace = f"tenants-{secrets.token_hex(4)}"
    flags = (
        "--etcd", etcd_address, "--namespace", namespace, "--http-port", "0", "--keys", "etcd",
        "--redis", f"redis://{valkey.address}", "--admin-key", ADMIN_KEY,
        "--limits-timeout-s", "2",  # on a busy machine, too, it is Redis that decides while it is there
    )  # fmt: skip
    worker = make_worker()
    async with (
        listening(worker),
        running("services.gateway", *flags, stderr=tmp_path / "a.log") as first,
        running("services.gateway", *flags, stderr=tmp_path / "b.log") as second,
        httpx.AsyncClient(base_url=f"http://{first.address('http')}", timeout=30) as a,
        httpx.AsyncClient(base_url=f"http://{second.address('http')}", timeout=30) as b,
    ):
        member = worker.member
        await etcd.put(member_key(namespace, member.kind, member.id), member.SerializeToString())
        limits = {"requests_per_min": LIMIT}
        assert (await a.put("/admin/tenants/acme", json=limits, headers=ADMIN)).status_code == 200
        key = (await a.post("/admin/keys", json={"tenant": "acme"}, headers=ADMIN)).json()["key"]
        headers = {"authorization": f"Bearer {key}"}

        async def knows(gateway: httpx.AsyncClient) -> bool:
            tenants = (await gateway.get("/admin/tenants", headers=ADMIN)).json()["data"]
            models = (await gateway.get("/v1/models", headers=headers)).json().get("data")
            return bool(models) and [one["requests_per_min"] for one in tenants] == [LIMIT]

        for gateway in (a, b):
            await eventually(lambda gateway=gateway: knows(gateway))

        async def burst(count: int) -> list[int]:
            answers: list[Any] = await asyncio.gather(
                *((a, b)[n % 2].post("/v1/completions", json=BODY, headers=headers) for n in range(count))
            )
            return [answer.status_code for answer in answers]

        loop = asyncio.get_running_loop()
        began_s = loop.time()
        statuses = await burst(3 * LIMIT)
        refilled = (loop.time() - began_s) * LIMIT / 60
        assert set(statuses) == {200, 429}
        assert LIMIT <= statuses.count(200) <= LIMIT + 1 + refilled

        async def used() -> int:
            answer = (await b.get("/admin/usage", headers=ADMIN)).json()
            assert answer["is_complete"]
            return sum(row["requests"] for row in answer["data"])

        async def is_counted() -> bool:
            return await used() == statuses.count(200)

        await eventually(is_counted)
        await valkey.kill()
        without = await burst(2 * LIMIT)  # each gateway goes on alone; nobody hangs
        assert set(without) <= {200, 429}
        usage = (await a.get("/admin/usage", headers=ADMIN)).json()
        assert usage["is_complete"] is False
