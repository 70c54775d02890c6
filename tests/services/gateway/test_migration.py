"""Workers that fail in mid-answer: the client sees exactly the undisturbed text, nothing twice, nothing missing."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from armature.openai.serving.options import ServingOptions
from armature.runtime.processes import free_port
from armature.v1.common_pb2 import FINISH_REASON_CANCELLED
from armature.v1.router_pb2 import Rejection
from armature.v1.worker_pb2 import DecodeRequest, TokenDelta, WorkerError
from tests.services.gateway.fakes import (
    BREAK,
    FakeRouter,
    FakeWorker,
    breaking_after,
    error,
    faithful,
    listen,
    output_of,
    rejection,
    token_array,
)
from tests.services.gateway.harness import TEXT, Gateway, answer, make_worker, running_gateway
from tests.support.eventually import eventually

INFO = {"include_info": True}


async def text_of(gateway: Gateway, **fields: Any) -> tuple[str, dict[str, Any]]:
    """The streamed text, the pieces put together, and the info."""
    import json

    text, info = "", {}
    async with gateway.client.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True, "armature": INFO}
        | fields,
    ) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                info = chunk.get("armature", info)
                text += "".join(choice["delta"].get("content", "") for choice in chunk["choices"])
    return text, info


async def test_a_worker_that_dies_after_any_number_of_tokens_costs_nothing() -> None:
    dying, healthy = make_worker("a"), make_worker("b")
    async with running_gateway(dying, healthy, options=ServingOptions()) as gateway:
        for tokens in range(len(answer())):
            dying.script = breaking_after(tokens)
            text, info = await text_of(gateway, seed=5)
            assert text == TEXT
            moved, first = healthy.requests[-1], dying.requests[-1]
            assert token_array(moved.token_ids)[moved.prompt_tokens :].tolist() == list(answer()[:tokens])
            assert moved.prompt_tokens == first.prompt_tokens
            assert moved.sampling == first.sampling
            assert (info["migrations"], info["decode_worker"]) == (1, "b")
        assert len(healthy.requests) == dying.streams == len(answer())


@pytest.mark.parametrize(
    "how",
    [
        error(WorkerError.CODE_UNAVAILABLE),
        error(WorkerError.CODE_INTERNAL),
        {"finish_reason": FINISH_REASON_CANCELLED},
        "silence",
    ],
    ids=["unavailable", "internal", "cancelled", "silent"],
)
@pytest.mark.parametrize("tokens", [0, 6])
async def test_whatever_way_a_worker_fails_the_request_moves(how: Any, tokens: int) -> None:
    failing, healthy = make_worker("a", script=breaking_after(tokens, how)), make_worker("b")
    async with running_gateway(failing, healthy) as gateway:
        text, info = await text_of(gateway)
        assert text == TEXT
        assert info["migrations"] == 1
        if how == "silence":
            await eventually(lambda: failing.cancelled, what="the stalled worker is told to stop")


async def test_a_worker_that_refuses_connections_costs_nothing() -> None:
    gone, healthy = make_worker("a"), make_worker("b")
    gone.address = "127.0.0.1:1"
    async with running_gateway(healthy, routers=[FakeRouter([gone, healthy])]) as gateway:
        text, info = await text_of(gateway)
    assert (text, info["migrations"]) == (TEXT, 1)


async def test_a_worker_that_cannot_be_reached_is_left_alone_until_it_can() -> None:
    gone, healthy = make_worker("a"), make_worker("b")
    gone.address = f"127.0.0.1:{free_port()}"
    async with running_gateway(healthy, routers=[FakeRouter([gone, healthy])]) as gateway:
        assert (await text_of(gateway))[1]["migrations"] == 1
        assert (await text_of(gateway))[1]["migrations"] == 0
        server = await listen(gone)
        await eventually(lambda: served_by(gateway, "a"), what="the worker is back")
        await server.stop(0)


async def test_a_lost_worker_is_asked_when_there_is_no_other() -> None:
    gone = make_worker("a")
    gone.address = f"127.0.0.1:{free_port()}"
    router = FakeRouter([gone])
    async with running_gateway(routers=[router], options=ServingOptions(migration_limit=1)) as gateway:
        gateway.tell("joined", gone.member)
        assert (await gateway.chat()).status_code == 503
        router.queries.clear()
        assert (await gateway.chat()).status_code == 503
        assert [list(query.excluded_workers) for query in router.queries][:2] == [["a"], []]


async def served_by(gateway: Gateway, worker_id: str) -> bool:
    return (await text_of(gateway))[1]["decode_worker"] == worker_id


async def repeating(worker: FakeWorker, request: DecodeRequest) -> AsyncIterator[TokenDelta]:
    """Says everything twice, the second time from two tokens earlier."""
    async for delta in faithful(worker, request):
        if not delta.finish_reason:
            yield delta
        start = max(output_of(request), delta.output_index - 2)
        again = TokenDelta(stream_id=delta.stream_id, output_index=start, finish_reason=delta.finish_reason)
        again.token_ids.extend(worker.answer[start : delta.output_index + len(delta.token_ids)])
        yield again


async def test_repeated_tokens_are_dropped() -> None:
    worker = make_worker(script=repeating)
    async with running_gateway(worker) as gateway:
        text, info = await text_of(gateway)
    assert (text, info["migrations"]) == (TEXT, 0)


async def skipping(worker: FakeWorker, request: DecodeRequest) -> AsyncIterator[TokenDelta]:
    async for delta in faithful(worker, request):
        if delta.output_index != 7:
            yield delta


async def test_a_missing_token_moves_the_request() -> None:
    losing, healthy = make_worker("a", script=skipping), make_worker("b")
    async with running_gateway(losing, healthy) as gateway:
        text, info = await text_of(gateway)
        assert (text, info["migrations"]) == (TEXT, 1)
        assert token_array(healthy.requests[0].token_ids)[-1] == answer()[6]


async def silent_end(worker: FakeWorker, request: DecodeRequest) -> AsyncIterator[Any]:
    """Dies between the last token and saying that it is the last."""
    async for delta in faithful(worker, request):
        delta.ClearField("finish_reason")
        yield delta
        if delta.output_index + len(delta.token_ids) >= min(len(worker.answer), request.max_tokens):
            yield BREAK


@pytest.mark.parametrize(("limit", "reason"), [({}, "stop"), ({"max_tokens": 4}, "length")])
async def test_a_death_after_the_last_token_ends_the_answer(limit: dict[str, int], reason: str) -> None:
    worker = make_worker(script=silent_end)
    async with running_gateway(worker) as gateway:
        choice = (await gateway.chat(**limit)).json()["choices"][0]
        assert choice["finish_reason"] == reason
        assert TEXT.startswith(choice["message"]["content"])
        assert len(worker.requests) == 1


async def test_an_answer_may_move_as_often_as_the_limit_says() -> None:
    workers = [make_worker(name, script=breaking_after(n)) for n, name in ((3, "a"), (9, "b"), (9, "c"))]
    workers.append(make_worker("d"))
    async with running_gateway(*workers) as gateway:
        text, info = await text_of(gateway)
    assert (text, info["migrations"]) == (TEXT, 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_beyond_the_limit_the_request_fails_cleanly(stream: bool) -> None:
    workers = [make_worker(name, script=breaking_after(0)) for name in "abcde"]
    async with running_gateway(*workers) as gateway:
        response = await gateway.chat(stream=stream)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "no_workers"
        assert [len(worker.requests) for worker in workers] == [1, 1, 1, 1, 0]


async def test_in_mid_stream_the_failure_is_an_event_and_the_end() -> None:
    worker = make_worker(script=breaking_after(4))
    async with running_gateway(worker, options=ServingOptions(migration_limit=0)) as gateway:
        response = await gateway.chat(stream=True)
    *events, last = response.text.strip().split("\n\n")
    assert response.status_code == 200
    assert '"error"' in last and '"no_workers"' in last
    assert not any("[DONE]" in event or '"error"' in event for event in events)


async def test_the_only_worker_may_be_asked_again() -> None:
    """A broken connection is not always a dead worker."""
    worker = make_worker(script=breaking_after(5))

    async def second_time(fake: FakeWorker, request: DecodeRequest) -> AsyncIterator[Any]:
        script = breaking_after(5) if len(fake.requests) == 1 else faithful
        async for item in script(fake, request):
            yield item

    worker.script = second_time
    async with running_gateway(worker) as gateway:
        text, info = await text_of(gateway)
    assert text == TEXT
    assert info["migrations"] == 1


async def test_log_probabilities_and_usage_survive_a_move() -> None:
    undisturbed = make_worker("c")
    async with running_gateway(undisturbed) as gateway:
        expected = (await gateway.chat(logprobs=True, top_logprobs=2)).json()
    dying, healthy = make_worker("a", script=breaking_after(11), batch=3), make_worker("b", batch=2)
    async with running_gateway(dying, healthy) as gateway:
        moved = (await gateway.chat(logprobs=True, top_logprobs=2)).json()
    assert moved["choices"] == expected["choices"]
    assert moved["usage"] == expected["usage"]


async def test_a_move_tells_router_and_worker_apart_by_attempt() -> None:
    dying, healthy = make_worker("a", script=breaking_after(4)), make_worker("b")
    router = FakeRouter([dying, healthy])
    async with running_gateway(dying, healthy, routers=[router]) as gateway:
        await text_of(gateway)
        await eventually(lambda: len(router.finished()) == 2)
    first, second = router.queries
    assert second.request_id == f"{first.request_id}-1"
    assert list(second.excluded_workers) == ["a"]
    assert second.prompt_tokens == first.prompt_tokens + 4
    assert second.sequence_hashes.startswith(first.sequence_hashes)
    assert sorted(router.finished()) == [first.request_id, second.request_id]


async def test_a_rejection_in_mid_answer_is_tried_again_within_the_limit() -> None:
    worker = make_worker(script=breaking_after(3))
    router = FakeRouter([worker])
    router.decide = lambda query: (
        rejection(Rejection.CODE_OVERLOADED) if query.excluded_workers else router.first(query)
    )
    async with running_gateway(worker, routers=[router], options=ServingOptions(migration_limit=1)) as gateway:
        response = await gateway.chat(stream=True)
    assert '"error"' in response.text.strip().split("\n\n")[-1]
    assert len(worker.requests) == 2  # at first, and after the pause before the one move
