"""Administering tenants and keys, in a file and in etcd, and reading what was used."""

import asyncio
import datetime
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from armature.cli.main import main
from armature.openai.serving.core import ServingCore
from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.openai.tenancy import key_etcd
from armature.openai.tenancy.admin import Admin, KeyStore
from armature.openai.tenancy.key_etcd import EtcdKeys
from armature.openai.tenancy.key_file import KeyFile
from armature.openai.tenancy.keys import TenantEntry, digest_of
from armature.openai.tenancy.usage import UsageMeter
from armature.runtime.etcd import EtcdClient
from tests.services.gateway.fakes import FakeRouter, listening
from tests.services.gateway.harness import MODEL, make_worker, running_core
from tests.support.eventually import eventually

ADMIN_KEY = "an admin key that nobody guesses"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
BODY = {"model": MODEL, "prompt": "x", "max_tokens": 5}


@asynccontextmanager
async def serving(store: KeyStore | None) -> AsyncIterator[tuple[httpx.AsyncClient, ServingCore]]:
    worker = make_worker()
    router = FakeRouter([worker])
    async with listening(worker, router), running_core([worker], [router]) as (core, _):
        core.doorkeeper.admin_digest = digest_of(ADMIN_KEY)
        meter = UsageMeter("gateway-a", "", None)
        core.on_end.append(meter.ended)
        core.texts.on_embedded.append(meter.embedded)
        following = None
        if isinstance(store, KeyFile):
            core.doorkeeper.table = store.read()
        elif isinstance(store, EtcdKeys):
            following = asyncio.create_task(store.follow(core.doorkeeper))
            await store.loaded(10.0)
        admin = Admin(core.doorkeeper, meter, store)
        rest = make_rest_app(core, ResponseStore(None, "test"), admin.routes())
        http = HttpServer(rest, "127.0.0.1", 0)
        running = asyncio.create_task(http.run())
        await http.started()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http.port}", timeout=15.0) as client:
            yield client, core
        http.stop(now=True)
        await running
        if following is not None:
            following.cancel()


def empty_file(folder: Path) -> KeyFile:
    path = folder / "keys.yaml"
    path.write_text("tenants: {globex: {requests_per_min: 5}}\n")
    return KeyFile(path)


async def created(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post("/admin/keys", json=fields, headers=ADMIN)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def status(client: httpx.AsyncClient, key: str) -> int:
    answer = await client.post("/v1/completions", json=BODY, headers={"authorization": f"Bearer {key}"})
    return answer.status_code


@pytest.fixture(params=["file", "etcd"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, etcd_address: str) -> AsyncIterator[KeyStore]:
    if request.param == "file":
        yield empty_file(tmp_path)
        return
    client = EtcdClient([etcd_address])
    store = EtcdKeys(client, f"keys-{secrets.token_hex(4)}")
    yield store
    await client.close()


async def test_keys_are_made_used_listed_and_revoked(store: KeyStore) -> None:
    async with serving(store) as (client, _):
        key = await created(client, tenant="acme", name="the web site")
        assert key["key"].startswith(key["id"])
        assert await status(client, key["key"]) == 200
        limits = {"requests_per_min": 7}
        assert (await client.put("/admin/tenants/acme", json=limits, headers=ADMIN)).status_code == 200
        listed = (await client.get("/admin/keys", headers=ADMIN)).json()["data"]
        tenants = {one["name"]: one for one in (await client.get("/admin/tenants", headers=ADMIN)).json()["data"]}
        kept = await client.delete("/admin/tenants/acme", headers=ADMIN)
        revoked = await client.delete(f"/admin/keys/{key['id']}", headers=ADMIN)
        assert await status(client, key["key"]) == 401
        again = await client.delete(f"/admin/keys/{key['id']}", headers=ADMIN)
        gone = await client.delete("/admin/tenants/acme", headers=ADMIN)
    assert [(one["id"], one["tenant"], one["name"]) for one in listed] == [(key["id"], "acme", "the web site")]
    assert not {"key", "digest"} & set(listed[0])
    assert (tenants["acme"]["requests_per_min"], tenants["acme"]["keys"]) == (7, 1)
    assert [answer.status_code for answer in (kept, revoked, again, gone)] == [409, 200, 404, 200]


async def test_the_keys_command_does_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def keys(*arguments: str) -> tuple[int, str]:
        result = await asyncio.to_thread(main, ["keys", *arguments, "--url", str(client.base_url)])
        told = capsys.readouterr()
        return result, told.out + told.err

    async with serving(empty_file(tmp_path)) as (client, _):
        monkeypatch.delenv("ARMATURE_ADMIN_KEY", raising=False)
        assert (await keys("list"))[0] == 1
        monkeypatch.setenv("ARMATURE_ADMIN_KEY", ADMIN_KEY)
        _, made = await keys("create", "acme", "--name", "the web site")
        key = made.split()[0]
        assert await status(client, key) == 200
        assert f"{key[:12]}  acme  the web site" in (await keys("list"))[1]
        assert (await keys("revoke", key[:12]))[0] == 0
        assert await status(client, key) == 401
        result, told = await keys("revoke", key[:12])
    assert (result, "refused (404)" in told) == (1, True)


async def test_other_gateways_hear_of_changes(etcd_address: str) -> None:
    namespace = f"keys-{secrets.token_hex(4)}"
    clients = [EtcdClient([etcd_address]) for _ in range(2)]
    stores = [EtcdKeys(client, namespace) for client in clients]
    async with serving(stores[0]) as (here, _), serving(stores[1]) as (there, _):
        key = await created(here, tenant="acme")
        await eventually(lambda: _is(there, key["key"], 200))
        await there.delete(f"/admin/keys/{key['id']}", headers=ADMIN)
        await eventually(lambda: _is(here, key["key"], 401))
    for client in clients:
        await client.close()


async def test_a_key_that_is_revoked_while_it_is_made_does_not_come_back(
    etcd_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace = f"keys-{secrets.token_hex(4)}"
    client, other = EtcdClient([etcd_address]), EtcdClient([etcd_address])

    class Late(EtcdKeys):
        async def _hear(self, is_told: Any) -> None:
            await super()._hear(is_told)
            await other.delete_prefix(f"/armature/{namespace}/keys/key/")
            await super()._hear(lambda records: not records)

    async with serving(Late(client, namespace)) as (here, core):
        key = await created(here, tenant="acme")
        assert await status(here, key["key"]) == 401
        assert core.doorkeeper.table is not None and not core.doorkeeper.table.book.keys
    monkeypatch.setattr(key_etcd, "HEAR_TIMEOUT_S", 0.1)
    deaf = EtcdKeys(client, namespace)  # nobody follows
    assert not (await deaf.put("tenant", "acme", TenantEntry())).book.tenants
    await client.close()
    await other.close()


async def test_embedded_prompts_are_used_tokens(tmp_path: Path) -> None:
    async with serving(empty_file(tmp_path)) as (client, _):
        key = await created(client, tenant="acme")
        body = {"model": MODEL, "input": ["hello", "x"]}
        made = await client.post("/v1/embeddings", json=body, headers={"authorization": f"Bearer {key['key']}"})
        (row,) = (await client.get("/admin/usage", headers=ADMIN)).json()["data"]
    tokens = made.json()["usage"]["prompt_tokens"]
    assert (row["tenant"], row["requests"], row["prompt_tokens"], row["completion_tokens"]) == ("acme", 1, tokens, 0)


async def _is(client: httpx.AsyncClient, key: str, expected: int) -> bool:
    return await status(client, key) == expected


async def test_a_file_says_what_was_done_and_nothing_secret(tmp_path: Path) -> None:
    file = empty_file(tmp_path)
    async with serving(file) as (client, _):
        key = await created(client, tenant="acme", expires_at="2099-01-01T00:00:00Z")
    text = (tmp_path / "keys.yaml").read_text()
    assert key["key"] not in text
    book = KeyFile(tmp_path / "keys.yaml").read().book
    assert book.keys[key["id"]].expires_at == datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC)
    assert book.tenants["globex"].requests_per_min == 5


async def test_only_the_admin_key_opens_admin_paths(tmp_path: Path) -> None:
    async with serving(empty_file(tmp_path)) as (client, core):
        key = await created(client, tenant="acme")
        own = {"authorization": f"Bearer {key['key']}"}
        answers = [await client.get("/admin/usage", headers=headers) for headers in ({}, own, ADMIN)]
        as_tenant = await client.post("/v1/completions", json=BODY, headers=ADMIN)
        core.doorkeeper.admin_digest = ""
        off = await client.get("/admin/usage", headers=ADMIN)
    assert [answer.status_code for answer in answers] == [401, 403, 200]
    assert (as_tenant.status_code, off.status_code) == (401, 403)
    assert off.json()["error"]["code"] == "no_admin_key"


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/admin/keys", b"{", 400),
        ("POST", "/admin/keys", b'{"tenant": "a b"}', 400),
        ("POST", "/admin/keys", b'{"tenant": "a", "expires_at": "2000-01-01T00:00:00Z"}', 400),
        ("POST", "/admin/keys", b'{"tenant": "a", "digest": ""}', 400),
        ("POST", "/admin/keys", b" " * 20_000, 413),
        ("PUT", "/admin/tenants/a%20b", b"{}", 400),
        ("PUT", "/admin/tenants/acme", b'{"tokens_per_min": -1}', 400),
        ("DELETE", "/admin/tenants/nobody", b"", 404),
        ("GET", "/admin/usage?from=yesterday", b"", 400),
        ("GET", "/admin/usage?from=2000-01-01", b"", 400),
    ],
)
async def test_what_is_wrong_is_told(tmp_path: Path, method: str, path: str, body: bytes, expected: int) -> None:
    async with serving(empty_file(tmp_path)) as (client, _):
        answer = await client.request(method, path, content=body, headers=ADMIN)
    assert answer.status_code == expected, answer.text
    assert answer.json()["error"]["message"]


async def test_use_is_counted_by_tenant_and_model(tmp_path: Path) -> None:
    async with serving(empty_file(tmp_path)) as (client, _):
        key = (await created(client, tenant="acme"))["key"]
        headers = {"authorization": f"Bearer {key}"}
        answers = [await client.post("/v1/completions", json=BODY | {"n": n}, headers=headers) for n in (1, 2)]
        used = (await client.get("/admin/usage?tenant=acme", headers=ADMIN)).json()
        others = (await client.get("/admin/usage?tenant=globex", headers=ADMIN)).json()
    usages = [answer.json()["usage"] for answer in answers]
    (row,) = used["data"]
    assert (row["tenant"], row["model"], row["requests"]) == ("acme", MODEL, 2)
    for name in ("prompt_tokens", "completion_tokens"):
        assert row[name] == sum(usage[name] for usage in usages)
    assert others["data"] == []


async def test_a_gateway_without_keys_tells_use_and_makes_no_keys() -> None:
    async with serving(None) as (client, _):
        assert (await client.post("/v1/completions", json=BODY)).status_code == 200
        used = (await client.get("/admin/usage", headers=ADMIN)).json()["data"]
        refused = await client.post("/admin/keys", json={"tenant": "acme"}, headers=ADMIN)
    assert [(row["tenant"], row["requests"]) for row in used] == [("default", 1)]
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_keys")
