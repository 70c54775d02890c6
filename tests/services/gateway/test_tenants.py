"""Callers are told apart by their keys on every surface, and share no cached KV beyond their tenant."""

import asyncio
from typing import Any

import grpc
import pytest

from armature.blocks.hashing import BlockHasher, pack_hashes
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, TenantEntry, digest_of, new_key
from armature.runtime.server import RpcServer
from armature.v1.inference_pb2 import GenerateRequest, ListModelsRequest
from armature.v1.inference_pb2_grpc import InferenceStub, add_InferenceServicer_to_server
from services.gateway.servicer import InferenceServicer
from tests.services.gateway.fakes import FakeRouter
from tests.services.gateway.harness import MODEL, Gateway, encode, make_worker, running_gateway
from tests.support.eventually import eventually

KEYS = {tenant: new_key()[0] for tenant in ("acme", "globex", "gone")}
TABLE = KeyTable(
    KeyBook(
        keys={key[:12]: KeyEntry(tenant=tenant, digest=digest_of(key)) for tenant, key in KEYS.items()},
        tenants={"gone": TenantEntry(is_disabled=True)},
    )
)
PROMPT = "The same words from everybody, long enough for several blocks of the smallest size."


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[tenant]}"}


async def complete(gateway: Gateway, headers: dict[str, str]) -> Any:
    return await gateway.client.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT}, headers=headers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": MODEL, "prompt": "x"}),
        ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}),
        ("/v1/models", None),
        (f"/v1/models/{MODEL}", None),
        ("/not/yet/written", None),
    ],
)
async def test_every_path_but_those_of_probes_takes_a_key(path: str, body: dict[str, Any] | None) -> None:
    async with running_gateway(make_worker()) as gateway:
        gateway.core.doorkeeper.table = TABLE

        async def ask(headers: dict[str, str]) -> Any:
            if body is None:
                return await gateway.client.get(path, headers=headers)
            return await gateway.client.post(path, json=body, headers=headers)

        without, wrong, disabled = [await ask(h) for h in ({}, {"x-api-key": "arm-wrong"}, bearer("gone"))]
        right = [await ask(bearer("acme")), await ask({"x-api-key": KEYS["acme"]})]
        probes = [await gateway.client.get(probe) for probe in ("/live", "/ready", "/health", "/metrics")]
    assert [answer.status_code for answer in (without, wrong, disabled)] == [401, 401, 403]
    codes = [answer.json()["error"]["code"] for answer in (without, wrong, disabled)]
    assert codes == ["missing_api_key", "invalid_api_key", "tenant_disabled"]
    assert without.headers["www-authenticate"] == "Bearer"
    assert [answer.status_code for answer in right] == [404 if path == "/not/yet/written" else 200] * 2
    assert [answer.status_code for answer in probes] == [200] * 4


async def test_anthropic_clients_are_refused_in_their_own_words() -> None:
    async with running_gateway(make_worker()) as gateway:
        gateway.core.doorkeeper.table = TABLE
        answer = await gateway.client.post("/v1/messages", json={})
    assert answer.status_code == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


async def test_tenant_and_namespace_reach_router_and_worker_and_no_hash_is_shared() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        open_to_all = await complete(gateway, {})
        gateway.core.doorkeeper.table = TABLE
        for tenant in ("acme", "globex", "acme"):
            assert (await complete(gateway, bearer(tenant))).status_code == 200
    assert open_to_all.status_code == 200
    assert [query.tenant for query in router.queries] == ["default", "acme", "globex", "acme"]
    assert [request.cache_namespace for request in worker.requests] == ["", "acme", "globex", "acme"]
    hasher = BlockHasher(b"secret", 8)
    for query, namespace in zip(router.queries, ("", "acme", "globex", "acme"), strict=True):
        own = hasher.extend(hasher.root(MODEL, namespace), encode(PROMPT))
        assert query.sequence_hashes == pack_hashes(own)
    hashes = [
        {query.sequence_hashes[i : i + 8] for i in range(0, len(query.sequence_hashes), 8)} for query in router.queries
    ]
    assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])
    assert hashes[1] == hashes[3]


async def test_a_client_cannot_choose_its_tenant_or_namespace() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway:
        gateway.core.doorkeeper.table = TABLE
        body = {"model": MODEL, "prompt": PROMPT, "cache_salt": "globex", "user": "globex", "tenant": "globex"}
        headers = bearer("acme") | {"x-tenant-id": "globex", "x-armature-tenant": "globex"}
        assert (await gateway.client.post("/v1/completions", json=body, headers=headers)).status_code == 200
    assert [request.cache_namespace for request in worker.requests] == ["acme"]


async def test_grpc_takes_the_same_keys() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway:
        gateway.core.doorkeeper.table = TABLE
        server = RpcServer("127.0.0.1")
        server.guard(gateway.core.doorkeeper.check_call)
        server.add(add_InferenceServicer_to_server, InferenceServicer(gateway.core), "armature.v1.Inference")
        await server.start()
        request = GenerateRequest(model=MODEL, prompt=PROMPT)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = InferenceStub(channel)

            async def code(call: Any) -> grpc.StatusCode:
                try:
                    await call if not hasattr(call, "read") else [_ async for _ in call]
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

            refused, disabled = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
            for metadata, expected in (
                ((), refused),
                ((("authorization", "Bearer arm-wrong"),), refused),
                ((("x-api-key", KEYS["gone"]),), disabled),
                ((("authorization", f"Bearer {KEYS['globex']}"),), grpc.StatusCode.OK),
            ):
                assert await code(stub.Generate(request, metadata=metadata, timeout=10)) == expected
                assert await code(stub.ListModels(ListModelsRequest(), metadata=metadata, timeout=10)) == expected
        await server.stop()
    assert [request.cache_namespace for request in worker.requests] == ["globex"]


def limited(**limits: int) -> KeyTable:
    entry = KeyEntry(tenant="acme", digest=digest_of(KEYS["acme"]))
    return KeyTable(KeyBook(keys={KEYS["acme"][:12]: entry}, tenants={"acme": TenantEntry(**limits)}))


async def test_requests_beyond_the_limit_are_429_with_the_limit_the_time_and_what_is_left() -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway:
        gateway.core.doorkeeper.table = limited(requests_per_min=2, tokens_per_min=60_000)
        answers = [await complete(gateway, bearer("acme")) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    first, refused = answers[0].headers, answers[2]
    assert (first["x-ratelimit-limit-requests"], first["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert first["x-ratelimit-limit-tokens"] == "60000"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert (error["param"], "acme" in error["message"]) == ("requests_per_min", True)
    assert len(worker.requests) == 2


async def test_tokens_are_charged_by_estimate_and_settled_by_use() -> None:
    async with running_gateway(make_worker()) as gateway:
        gateway.core.doorkeeper.table = limited(tokens_per_min=1000)
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 400}
        answers = [await gateway.client.post("/v1/completions", json=body, headers=bearer("acme")) for _ in range(3)]
    estimate, used = len(encode(PROMPT)) + 400, answers[0].json()["usage"]["total_tokens"]
    assert 3 * estimate > 1000 > 2 * used + estimate, "the third fits by use alone"
    assert [answer.status_code for answer in answers] == [200] * 3
    left = [int(answer.headers["x-ratelimit-remaining-tokens"]) for answer in answers]
    assert left[0] == 1000 - estimate
    assert 1000 - estimate - 2 * used <= left[2] < 1000 - estimate - used


async def test_only_so_many_requests_of_a_tenant_are_served_at_a_time() -> None:
    worker = make_worker(step=asyncio.Event())
    async with running_gateway(worker) as gateway:
        gateway.core.doorkeeper.table = limited(concurrent_requests=2)
        running = [asyncio.create_task(complete(gateway, bearer("acme"))) for _ in range(2)]
        await eventually(lambda: len(worker.requests) == 2)
        refused = await complete(gateway, bearer("acme"))
        assert worker.step is not None
        worker.step.set()
        served = [(await task).status_code for task in running]
        again = await complete(gateway, bearer("acme"))
    assert (refused.status_code, refused.json()["error"]["param"]) == (429, "concurrent_requests")
    assert (served, again.status_code) == ([200, 200], 200)


async def test_a_request_that_is_refused_for_its_content_costs_nothing() -> None:
    async with running_gateway(make_worker()) as gateway:
        gateway.core.doorkeeper.table = limited(requests_per_min=1)
        wrong = await gateway.client.post("/v1/completions", json={"model": MODEL}, headers=bearer("acme"))
        right = await complete(gateway, bearer("acme"))
    assert (wrong.status_code, right.status_code) == (400, 200)
