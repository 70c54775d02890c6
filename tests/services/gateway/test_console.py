"""What the console asks: who may, what it is told, and that nothing is left when it stops."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from armature.console.feed import MAX_WATCHERS
from armature.console.routes import PAGE
from armature.openai.serving.core import ServingCore
from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.openai.tenancy.keys import KeyBook, KeyTable, digest_of
from tests.services.gateway.console import Watched
from tests.services.gateway.fakes import FakeRouter, listening
from tests.services.gateway.harness import MODEL, make_worker, running_core
from tests.support.eventually import eventually

ADMIN_KEY = "an admin key that nobody guesses"
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
EVENTS = {"accept": "text/event-stream"}


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[httpx.AsyncClient, ServingCore, Watched]]:
    worker = make_worker()
    router = FakeRouter([worker])
    async with listening(worker, router), running_core([worker], [router]) as (core, tasks):
        watched = Watched(core, tasks, [worker.member, router.member])
        http = HttpServer(make_rest_app(core, ResponseStore(None, "test"), watched.console.routes()), "127.0.0.1", 0)
        running = asyncio.create_task(http.run())
        await http.started()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http.port}", timeout=15.0) as client:
            yield client, core, watched
        watched.console.feed.close()
        http.stop(now=True)
        await running


@pytest.mark.parametrize("path", ["/admin/cell", "/admin/decisions", "/admin/decisions/x"])
async def test_whoever_has_the_admin_key_may_look(path: str) -> None:
    async with serving() as (client, core, _):
        core.doorkeeper.admin_digest = digest_of(ADMIN_KEY)
        assert (await client.get(path)).status_code == 401
        assert (await client.get(path, headers={"authorization": "Bearer other"})).status_code == 403
        assert (await client.get(path, headers=ADMIN)).status_code in (200, 404)


async def test_without_any_key_only_this_machine_may_look_and_change_nothing() -> None:
    async with serving() as (client, core, _):
        assert (await client.get("/admin/cell")).status_code == 200
        for headers in ({"host": "evil.example"}, {"x-forwarded-for": "192.0.2.7"}, {"sec-fetch-site": "cross-site"}):
            refused = await client.get("/admin/cell", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no_admin_key")
        assert (await client.get("/admin/keys")).status_code == 403
        core.doorkeeper.table = KeyTable(KeyBook())
        assert (await client.get("/admin/cell")).status_code == 403


async def test_the_page_comes_whole_and_from_here_only() -> None:
    async with serving() as (client, core, _):
        core.doorkeeper.admin_digest = digest_of(ADMIN_KEY)
        page = await client.get("/console")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for file in PAGE.iterdir():
            part = await client.get(f"/console/{file.name}")
            assert part.content == file.read_bytes()
            again = await client.get(f"/console/{file.name}", headers={"if-none-match": part.headers["etag"]})
            assert again.status_code == 304
            assert "://" not in part.text.replace("http://www.w3.org/", "")
        for other in ("nothing.js", "..%2froutes.py", "%2e%2e", "index.html%00"):
            assert (await client.get(f"/console/{other}")).status_code == 404


async def test_a_stream_goes_on_until_its_client_leaves_and_then_nothing_is_asked() -> None:
    async with serving() as (client, _, watched):
        async with client.stream("GET", "/admin/cell", headers=EVENTS) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.aiter_lines()
            told = [json.loads(line[6:]) async for line in _first(lines, 2)]
            assert [one["type"] for one in told] == ["cell", "change"]
            assert list(told[0]["cell"]["workers"]) == ["worker-a"]
            assert watched.open == 1
        await eventually(lambda: watched.open == 0)
        assert watched.console.feed.watchers == 0


async def test_too_many_watchers_are_told_to_come_later() -> None:
    async with serving() as (client, _, watched):
        watches = [watched.console.feed.watch() for _ in range(MAX_WATCHERS)]
        await asyncio.gather(*(anext(watch) for watch in watches))
        for headers in (EVENTS, {}):
            refused = await client.get("/admin/cell", headers=headers)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
        for watch in watches:
            await watch.aclose()


async def test_nothing_of_what_people_say_or_of_keys_is_told() -> None:
    secret = "nobody is to read this prompt"
    async with serving() as (client, core, _):
        core.doorkeeper.admin_digest = digest_of(ADMIN_KEY)
        body = {"model": MODEL, "prompt": secret, "max_tokens": 3}
        assert (await client.post("/v1/completions", json=body)).status_code == 200
        told = (await client.get("/admin/cell", headers=ADMIN)).text
        assert secret not in told
        assert ADMIN_KEY not in told
        assert digest_of(ADMIN_KEY) not in told


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=", "limit=-1", "limit=1e3", "limit=%D9%A1"]
)
async def test_a_wrong_number_is_refused_by_name(query: str) -> None:
    async with serving() as (client, _, _):
        refused = await client.get(f"/admin/decisions?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "limit")


async def test_a_router_that_does_not_tell_is_named() -> None:
    async with serving() as (client, _, _):
        told = (await client.get("/admin/decisions")).json()
        assert told["data"] == []
        assert list(told["problems"].values()) == ["unimplemented"]
        assert (await client.get("/admin/decisions/x")).status_code == 404


async def _first(lines: AsyncIterator[str], number: int) -> AsyncIterator[str]:
    async for line in lines:
        if line.startswith("data: "):
            yield line
            number -= 1
            if not number:
                return
