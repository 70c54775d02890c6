"""Preparing for the next turn of a chat: it helps, and it is in nobody's way."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from armature.openai.serving.metrics import NEXT_TURNS
from armature.openai.serving.options import ServingOptions
from armature.v1.router_pb2 import Placement, Query, Rejection
from tests.services.gateway.fakes import FakeRouter, FakeWorker, rejection, token_array
from tests.services.gateway.harness import TEXT, Gateway, answer, make_worker, running_gateway, tokenizer
from tests.support.cell import Cell, running_cell
from tests.support.eventually import eventually

HINTED: dict[str, Any] = {"hints": {"speculative_prefill": True}, "session_id": "s"}
PATIENT = ServingOptions()


class Outcomes:
    """What has become of next turns since this was made."""

    def __init__(self) -> None:
        self._before = self._counts()

    def _counts(self) -> dict[str, float]:
        names = ("done", "cached", "busy", "queue", "rejected", "failed")
        return {name: NEXT_TURNS.labels(name)._value.get() for name in names}

    def seen(self) -> dict[str, float]:
        return {
            name: count - self._before[name] for name, count in self._counts().items() if count > self._before[name]
        }


def is_ahead(query: Query) -> bool:
    return query.request_id.endswith("-next")


async def chat(gateway: Gateway, **fields: Any) -> None:
    assert (await gateway.chat(**({"armature": HINTED} | fields))).status_code == 200


def worker_with_long_answer(**fields: Any) -> FakeWorker:
    """Its tokens are not those that a tokenizer makes of its text: one byte each at first."""
    single = [token for letter in "The router" for token in tokenizer().vocabulary.tokenizer.encode(letter).ids]
    return make_worker(answer=(*single, *answer()), **fields)


async def test_the_next_turn_is_prefilled_at_the_lowest_priority_and_without_an_answer() -> None:
    worker = worker_with_long_answer()
    router, outcomes = FakeRouter([worker]), Outcomes()
    async with running_gateway(worker, routers=[router], options=PATIENT) as gateway:
        await chat(gateway, temperature=0.9, stop=["zzz"], logprobs=True, stream=True)
        await eventually(lambda: outcomes.seen() == {"done": 1})
        await eventually(lambda: len(router.finished()) == 2, what="the router gets its place back")
    asked, ahead = router.queries
    assert is_ahead(ahead) and ahead.request_id.startswith(asked.request_id)
    assert (ahead.session_id, ahead.max_tokens, ahead.hints.priority, ahead.hints.latency_sensitivity) == (
        "s",
        1,
        -10,
        0,
    )
    request = worker.requests[1]
    assert (request.max_tokens, request.sampling.temperature, request.sampling.logprobs) == (1, 0, False)
    tokens = token_array(request.token_ids).tolist()
    assert len(tokens) % 8 == 0
    text = tokenizer().vocabulary.tokenizer.decode(tokens, skip_special_tokens=False)
    coming = f"<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nThe router{TEXT}<|im_end|>\n<|im_start|>user\n"
    assert coming.startswith(text) and "The router" in text


async def test_without_the_hint_or_room_for_it_nothing_is_prefilled() -> None:
    for options, said in ((PATIENT, {}), (ServingOptions(max_speculative_prefills=0), HINTED)):
        worker = worker_with_long_answer()
        outcomes = Outcomes()
        async with running_gateway(worker, options=options) as gateway:
            await chat(gateway, armature=said)
            await chat(gateway, armature={})
        assert len(worker.requests) == 2
        assert outcomes.seen() == {}


async def test_what_the_worker_has_anyway_is_not_computed_again() -> None:
    """Template and tokenizer give back the very tokens that were made, up to the last whole block."""
    worker = make_worker(answer=answer()[:-1])
    outcomes = Outcomes()
    async with running_gateway(worker, options=PATIENT) as gateway:
        for length in range(2, 10):
            await chat(gateway, max_tokens=length)
        await eventually(lambda: sum(outcomes.seen().values()) == 8)
    assert outcomes.seen()["cached"] >= 1


async def test_at_most_so_many_are_under_way() -> None:
    worker = worker_with_long_answer()
    router, outcomes = FakeRouter([worker]), Outcomes()
    silent = FakeRouter([worker])
    router.decide = lambda query: None if is_ahead(query) else silent.first(query)
    async with running_gateway(worker, routers=[router], options=ServingOptions(max_speculative_prefills=1)) as gateway:
        await chat(gateway)
        await eventually(lambda: any(map(is_ahead, router.queries)))
        await chat(gateway)
        assert outcomes.seen() == {"busy": 1}
        await eventually(lambda: outcomes.seen() == {"busy": 1, "queue": 1}, what="no place, so it is given up")
        router.decide = None
        await chat(gateway)
        await eventually(lambda: outcomes.seen() == {"busy": 1, "queue": 1, "done": 1})


async def test_nothing_is_prefilled_while_queries_wait() -> None:
    worker = worker_with_long_answer(step=asyncio.Event())
    router, outcomes = FakeRouter([worker]), Outcomes()
    async with running_gateway(worker, routers=[router], options=ServingOptions(route_timeout_s=30)) as gateway:
        hinted = asyncio.create_task(chat(gateway))
        await eventually(lambda: worker.requests)
        router.decide = lambda _: None
        waiting = asyncio.create_task(gateway.chat())
        await eventually(lambda: gateway.core._router.longest_wait_s() > 0.05)
        assert worker.step is not None
        worker.step.set()
        await hinted
        assert outcomes.seen() == {"queue": 1}
        assert not any(map(is_ahead, router.queries))
        waiting.cancel()


async def test_a_refusal_or_a_failure_costs_nothing_but_the_preparation() -> None:
    worker = worker_with_long_answer()
    router, outcomes = FakeRouter([worker]), Outcomes()
    first = FakeRouter([worker]).first

    def refuse(query: Query) -> Placement:
        return rejection(Rejection.CODE_OVERLOADED) if is_ahead(query) else first(query)

    def lose(query: Query) -> Placement:
        placement = first(query)
        if is_ahead(query):
            placement.assigned.worker_id, placement.assigned.address = "gone", "127.0.0.1:1"
        return placement

    async with running_gateway(worker, routers=[router], options=PATIENT) as gateway:
        for decide, outcome in ((refuse, "rejected"), (lose, "failed")):
            router.decide = decide
            await chat(gateway)
            await eventually(lambda outcome=outcome: outcomes.seen().get(outcome) == 1)
        await eventually(lambda: len(router.finished()) == 3, what="every place is given back")


async def test_the_next_turn_finds_more_of_itself_cached(etcd_address: str, tmp_path: Path) -> None:
    """With real services: made tokens are at random here, so their text is cut into other tokens when it comes back."""
    flags = ("--engine", "simulated")
    cell_of = running_cell(tmp_path / "next", etcd_address, prefill=0, decode=0, aggregated=1, worker_flags=flags)
    async with cell_of as cell, httpx.AsyncClient(base_url=cell.url, timeout=60.0) as client:

        async def is_ready() -> bool:
            return (await client.get("/ready")).status_code == 200

        await eventually(is_ready)
        plain = await cached_in_second_turn(client, cell, "Tell me of rivers.", ahead=False)
        ahead = await cached_in_second_turn(client, cell, "What is a mountain?", ahead=True)
    assert ahead > plain + 50


async def cached_in_second_turn(client: httpx.AsyncClient, cell: Cell, question: str, *, ahead: bool) -> int:
    messages = [{"role": "user", "content": question}]
    body = {"model": "demo", "messages": messages, "max_tokens": 100, "ignore_eos": True}
    response = await client.post("/v1/chat/completions", json={**body, "armature": HINTED if ahead else {}})
    assert response.status_code == 200, response.text
    first = response.json()

    async def is_done() -> bool:
        return (await cell.services["gateway"].metrics()).get("armature_gateway_next_turns_total") == 1

    if ahead:
        await eventually(is_done)
    messages += [first["choices"][0]["message"], {"role": "user", "content": "And then?"}]
    second = (await client.post("/v1/chat/completions", json=body)).json()
    return second["usage"]["prompt_tokens_details"]["cached_tokens"]
