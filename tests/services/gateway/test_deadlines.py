"""One budget of time for each request, which its client may shorten, and what it means on the way."""

from dataclasses import replace

import pytest

from armature.openai.errors import ApiError
from armature.openai.serving.http.exchange import requested_timeout_s
from armature.openai.tenancy.admission import current_admission
from armature.v1.router_pb2 import Placement, Query, Waiting
from tests.services.gateway.fakes import FakeRouter, breaking_after
from tests.services.gateway.harness import MODEL, QUICK, make_worker, running_core, running_gateway
from tests.support.eventually import eventually

BODY = {"model": MODEL, "prompt": "x"}
PATIENT = replace(QUICK, stall_timeout_s=30.0, first_token_timeout_s=30.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("1.5", 1.5), ("30s", 30.0), ("1500ms", 1.5), ("2 s", 2.0), ("", None)]
)
def test_a_client_says_how_long_it_waits(text: str, seconds: float | None) -> None:
    for name in (b"x-request-timeout", b"timeout"):
        assert requested_timeout_s({"headers": [(name, text.encode())]}) == seconds


@pytest.mark.parametrize("text", ["0", "-1", "soon", "1e9999", "nan", "inf", "5m", "1" * 400, "٣"])
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    with pytest.raises(ApiError, match="x-request-timeout") as caught:
        requested_timeout_s({"headers": [(b"x-request-timeout", text.encode("utf-8"))]})
    assert (caught.value.status, caught.value.param) == (400, "x-request-timeout")


async def test_the_clients_time_is_the_workers_and_the_routers_too() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        await gateway.client.post("/v1/completions", json=BODY, headers={"x-request-timeout": "5"})
        await gateway.client.post("/v1/completions", json=BODY, headers={"x-request-timeout": "500"})
        await gateway.client.post("/v1/completions", json=BODY)
    assert 0 < worker.requests[0].timeout_s <= 5
    assert all(5 < request.timeout_s <= QUICK.request_timeout_s for request in worker.requests[1:])
    assert [query.hints.ttft_target_s for query in router.queries] == [5, 500, 0]


async def test_waiting_in_the_routers_queue_ends_with_the_clients_time() -> None:
    def wait(query: Query) -> Placement:
        return Placement(waiting=Waiting(within_s=60))

    worker = make_worker()
    router = FakeRouter([worker], decide=wait)
    async with running_gateway(worker, routers=[router]) as gateway:
        answer = await gateway.client.post("/v1/completions", json=BODY, headers={"x-request-timeout": "300ms"})
        await eventually(router.finished)  # its place in the queue is given up
        assert gateway.core.inflight == 0
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert "0.3 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize("tokens", [0, 3])
async def test_an_answer_that_stalls_ends_with_the_clients_time_and_its_work_is_cancelled(tokens: int) -> None:
    worker = make_worker(script=breaking_after(tokens, how=None))
    async with running_gateway(worker, options=PATIENT) as gateway:
        answer = await gateway.client.post("/v1/completions", json=BODY, headers={"timeout": "0.5"})
        await eventually(lambda: worker.cancelled)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


async def test_a_deadline_is_of_one_request_alone() -> None:
    """Requests of one task after another: nothing of the first one's admission is left to the next."""
    async with running_core([], []) as (core, _):
        with core.admitted(1.0):
            assert current_admission() is not None
        with core.admitted():
            admission = current_admission()
            assert admission is not None
            assert admission.timeout_s == float("inf")
