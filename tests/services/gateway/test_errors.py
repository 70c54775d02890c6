"""Whatever is wrong is told in OpenAI's error shape, with the status that fits."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from armature.openai.serving.options import ServingOptions
from armature.v1.router_pb2 import Rejection
from armature.v1.worker_pb2 import WorkerError
from tests.services.gateway.fakes import FakeRouter, breaking_after, error, rejection
from tests.services.gateway.harness import MODEL, QUICK, Gateway, card, make_worker, running_gateway
from tests.support.eventually import eventually

CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


def told(response: httpx.Response) -> dict[str, Any]:
    """The error, its shape checked."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and body["error"]["type"]
    return body["error"]


async def test_http_mistakes_have_their_status() -> None:
    async with running_gateway(make_worker()) as gateway:
        client = gateway.client
        cases = [
            (await client.get(CHAT), 405, "method_not_allowed"),
            (await client.put("/v1/completions", json=BODY), 405, "method_not_allowed"),
            (await client.post("/v1/models", json=BODY), 405, "method_not_allowed"),
            (await client.get("/v1/nothing"), 404, "unknown_url"),
            (await client.post("/chat/completions", json=BODY), 404, "unknown_url"),
            (await client.get("/v1/models/nobody/at/all"), 404, "model_not_found"),
            (await client.post(CHAT, data={"model": MODEL}), 415, "unsupported_media_type"),
            (
                await client.post(CHAT, content=b"x", headers={"content-type": "text/plain"}),
                415,
                "unsupported_media_type",
            ),
            (
                await client.post(CHAT, json=BODY, headers={"content-encoding": "gzip"}),
                415,
                "unsupported_media_type",
            ),
            (await client.post(CHAT, content=b"{"), 400, "invalid_json"),
            (await client.post(CHAT, content=b""), 400, "invalid_json"),
            (await client.post(CHAT, json=[]), 400, "invalid_type"),
            (await client.post(CHAT, json={**BODY, "model": "nobody"}), 404, "model_not_found"),
        ]
        for response, status, code in cases:
            assert (response.status_code, told(response)["code"]) == (status, code)
        assert "at /v1/chat/completions" in told(cases[4][0])["message"]
        assert cases[0][0].headers["allow"] == "POST"
        assert (await client.post(CHAT, content=json.dumps(BODY))).status_code == 200  # no content type at all
        utf8 = {"content-type": "application/json; charset=utf-8"}
        assert (await client.post(CHAT, content=json.dumps(BODY), headers=utf8)).status_code == 200


async def test_a_body_that_is_too_large_is_refused_with_and_without_its_length() -> None:
    options = ServingOptions(max_body_bytes=1000)
    async with running_gateway(make_worker(), options=options) as gateway:
        large = json.dumps({**BODY, "user": "x" * 2000}).encode()

        async def in_chunks() -> Any:
            for start in range(0, len(large), 100):
                yield large[start : start + 100]

        for content in (large, in_chunks()):
            response = await gateway.client.post(CHAT, content=content)
            assert (response.status_code, told(response)["code"]) == (413, "body_too_large")
        assert (await gateway.chat()).status_code == 200


async def test_a_body_that_never_comes_is_given_up() -> None:
    async with running_gateway(make_worker(), options=ServingOptions(body_timeout_s=0.1)) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(gateway.url).port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
        answer = await reader.read()  # to the end: the connection is closed
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in answer
        assert gateway.core.inflight == 0
        writer.close()


async def test_a_prompt_longer_than_the_context_is_the_callers_error() -> None:
    async with running_gateway(make_worker(card=card(context_length=64))) as gateway:
        response = await gateway.chat(messages=[{"role": "user", "content": "block " * 100}])
        assert response.status_code == 400
        assert (told(response)["code"], told(response)["param"]) == ("context_length_exceeded", "messages")
        response = await gateway.chat(messages=[{"role": "user", "content": "block " * 100_000}])
        assert "at least" in told(response)["message"]  # by its length alone, without tokenizing it
        body = {"model": MODEL, "prompt": [5] * 64}
        response = await gateway.client.post("/v1/completions", json=body)
        assert (told(response)["code"], told(response)["param"]) == ("context_length_exceeded", "prompt")
        body["prompt"] = [5] * 63
        response = await gateway.client.post("/v1/completions", json=body)
        assert response.json()["usage"]["completion_tokens"] == 1
        body["prompt"] = [512]
        response = await gateway.client.post("/v1/completions", json=body)
        assert (response.status_code, told(response)["param"]) == (400, "prompt")


async def test_rejections_name_a_time_to_come_back() -> None:
    worker = make_worker()
    for code, status, after_s in ((Rejection.CODE_NO_WORKERS, 503, 0.0), (Rejection.CODE_OVERLOADED, 429, 7.0)):
        router = FakeRouter([worker], decide=lambda _, c=code, a=after_s: rejection(c, a))
        async with running_gateway(worker, routers=[router]) as gateway:
            for stream in (False, True):
                response = await gateway.chat(stream=stream)
                assert response.status_code == status
                assert int(response.headers["retry-after"]) == max(1, after_s)
                assert "as scripted" in told(response)["message"]


async def test_a_model_whose_workers_are_gone_is_unavailable_then_unknown() -> None:
    worker = make_worker()
    async with running_gateway(worker, options=ServingOptions(model_memory_s=0.2)) as gateway:
        gateway.tell("left", worker.member)
        response = await gateway.chat()
        assert (response.status_code, told(response)["code"]) == (503, "no_workers")
        assert response.headers["retry-after"]

        async def forgotten() -> bool:
            return (await gateway.chat()).status_code == 404

        await eventually(forgotten)


async def test_a_model_without_a_tokenizer_says_so_and_recovers_when_the_record_changes() -> None:
    worker = make_worker(card=card(path="/nowhere"))
    async with running_gateway(worker) as gateway:
        response = await gateway.chat()
        assert (response.status_code, told(response)["code"]) == (503, "tokenizer_unavailable")
        worker.card = card()
        gateway.tell("updated", worker.member)
        assert (await gateway.chat()).status_code == 200


async def test_requests_beyond_the_bound_are_refused_at_once() -> None:
    worker = make_worker(step=asyncio.Event())
    async with running_gateway(worker, options=ServingOptions(max_concurrent_requests=2)) as gateway:
        first, second = (asyncio.create_task(gateway.chat()) for _ in range(2))
        await eventually(lambda: len(worker.requests) == 2)
        refused = await gateway.chat()
        assert (refused.status_code, told(refused)["code"]) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        worker.step.set()
        assert [response.status_code for response in await asyncio.gather(first, second)] == [200, 200]
        assert (await gateway.chat()).status_code == 200


async def test_a_draining_gateway_finishes_what_it_has_and_takes_nothing_new() -> None:
    worker = make_worker(step=asyncio.Event())
    async with running_gateway(worker) as gateway:
        assert (await gateway.client.get("/ready")).status_code == 200
        running = asyncio.create_task(gateway.chat())
        await eventually(lambda: worker.requests)
        draining = asyncio.create_task(gateway.core.drain())
        await eventually(lambda: not gateway.core.is_ready)
        assert (await gateway.client.get("/ready")).status_code == 503
        assert (await gateway.client.get("/live")).status_code == 200
        refused = await gateway.chat()
        assert refused.status_code == 503
        assert told(refused)["code"] == "draining"
        assert not draining.done()
        worker.step.set()
        assert (await running).status_code == 200
        await draining


async def test_a_gateway_without_models_is_alive_and_not_ready() -> None:
    async with running_gateway(routers=[]) as gateway:
        assert [(await gateway.client.get(path)).status_code for path in ("/live", "/ready", "/health")] == [
            200,
            503,
            503,
        ]
        assert (await gateway.client.get("/v1/models")).json()["data"] == []


async def test_what_a_worker_refuses_as_wrong_is_the_callers_error() -> None:
    worker = make_worker(script=breaking_after(0, error(WorkerError.CODE_INVALID, "no such thing")))
    async with running_gateway(worker) as gateway:
        response = await gateway.chat()
        assert response.status_code == 400
        assert "no such thing" in told(response)["message"]
        assert len(worker.requests) == 1


@pytest.mark.parametrize("how", [error(WorkerError.CODE_DEADLINE_EXCEEDED), "silence"])
async def test_an_answer_that_takes_too_long_is_a_timeout(how: Any) -> None:
    options = ServingOptions(request_timeout_s=0.5, first_token_timeout_s=5.0)
    async with running_gateway(make_worker(script=breaking_after(0, how)), options=options) as gateway:
        response = await gateway.chat(stream=True)
        assert (response.status_code, told(response)["code"]) == (504, "deadline_exceeded")


async def test_a_first_token_that_takes_too_long_is_a_timeout() -> None:
    options = ServingOptions(first_token_timeout_s=0.3, stall_timeout_s=5.0)
    async with running_gateway(make_worker(script=breaking_after(0, "silence")), options=options) as gateway:
        response = await gateway.chat()
        assert (response.status_code, told(response)["type"]) == (504, "timeout_error")


async def test_metrics_count_what_happened() -> None:
    async def value(gateway: Gateway, sample: str) -> float:
        lines = (await gateway.client.get("/metrics")).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample))

    ok = 'armature_gateway_requests_total{route="/v1/chat/completions",status="200"}'
    async with running_gateway(make_worker(), options=QUICK) as gateway:
        before = [await value(gateway, name) for name in (ok, "armature_gateway_inter_token_latency_seconds_count")]
        await gateway.chat(stream=True)
        assert await value(gateway, ok) == before[0] + 1
        assert await value(gateway, "armature_gateway_inter_token_latency_seconds_count") > before[1]
        assert await value(gateway, "armature_gateway_time_to_first_token_seconds_count") > 0
        assert await value(gateway, "armature_gateway_inflight_requests") == 0


async def test_what_clients_make_up_becomes_no_series() -> None:
    async with running_gateway(make_worker(), options=QUICK) as gateway:
        assert (await gateway.chat(model="made-up-model")).status_code == 404
        assert (await gateway.client.post("/v1/made-up-route", json={})).status_code == 404
        assert (await gateway.client.get("/v1/models/made-up-model")).status_code == 404
        assert "made-up" not in (await gateway.client.get("/metrics")).text
