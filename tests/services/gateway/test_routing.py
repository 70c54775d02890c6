"""Asking routers: coalesced, bounded in time, with the next one or the gateway itself where one fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import REGISTRY

from armature.blocks.hashing import BlockHasher, pack_hashes
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.router_client import ROUTE, _RouterStream
from armature.openai.serving.worker_streams import DECODE_STREAM
from armature.runtime.channels import ChannelPool
from armature.runtime.processes import free_port
from armature.runtime.server import RpcServer
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, ROLE_DECODE, ROLE_PREFILL, ServingInfo
from armature.v1.router_pb2 import Placement, Progress, Query, RouteRequest, RouteResponse
from armature.v1.worker_pb2 import DecodeFrame
from tests.services.gateway.fakes import FakeRouter, breaking_after, listen, listening, token_array
from tests.services.gateway.harness import MODEL, TEXT, Gateway, answer, make_worker, running_gateway
from tests.support.eventually import eventually


async def is_answered(gateway: Gateway, **fields: Any) -> bool:
    response = await gateway.chat(**fields)
    return response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == TEXT


async def test_the_router_hears_of_the_prompt_the_first_token_and_the_end() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        assert await is_answered(gateway, max_tokens=100)
        await eventually(lambda: len(router.progress) == 2)
    (query,) = router.queries
    request = worker.requests[0]
    tokens = token_array(request.token_ids)
    hasher = BlockHasher(b"secret", 8)
    assert query.sequence_hashes == pack_hashes(hasher.extend(hasher.root(MODEL), tokens))
    assert (query.model, query.prompt_tokens, query.max_tokens) == (MODEL, len(tokens), 100)
    assert query.request_id == request.request_id
    assert [progress.kind for progress in router.progress] == [Progress.KIND_FIRST_TOKEN, Progress.KIND_FINISHED]
    assert {progress.request_id for progress in router.progress} == {query.request_id}


async def test_tokens_come_from_where_a_worker_says_that_its_streams_are() -> None:
    worker, server = make_worker(), RpcServer("127.0.0.1")
    server.stream_lean(DECODE_STREAM, worker.Stream, DecodeFrame.FromString)
    await server.start()
    worker.address, worker.stream_address = f"127.0.0.1:{free_port()}", server.stream_address
    router = FakeRouter([worker])
    async with listening(router), running_gateway(worker, routers=[router], serve=False) as gateway:
        assert await is_answered(gateway)
        assert worker.open_streams == 1
        gateway.tell("left", worker.member)
        await eventually(lambda: not worker.open_streams)
    await server.stop()


async def test_the_router_hears_who_asks_and_what_is_hinted() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router]) as gateway:
        hints = {"priority": 2, "ttft_target_s": 0.5}
        assert await is_answered(gateway, armature={"hints": hints, "session_id": "s-1"})
        headers = {"x-dynamo-session-id": "s-2"}
        body = {"model": MODEL, "prompt": "x", "nvext": {"agent_hints": {"osl": 9}}}
        assert (await gateway.client.post("/v1/completions", json=body, headers=headers)).status_code == 200
    said, other = router.queries
    assert (said.session_id, said.hints.priority, said.hints.ttft_target_s) == ("s-1", 2, 0.5)
    assert (other.session_id, other.hints.expected_output_tokens) == ("s-2", 9)
    assert {query.tenant for query in router.queries} == {"default"}


async def test_the_router_hears_what_was_cached_and_what_was_made() -> None:
    """Of a moved answer, each part for the placement that made it."""
    workers = [make_worker("a", script=breaking_after(5)), make_worker("b")]
    router = FakeRouter(workers)
    async with running_gateway(*workers, routers=[router]) as gateway:
        assert await is_answered(gateway)
        await eventually(lambda: len(router.progress) == 4)
    firsts = [progress for progress in router.progress if progress.kind == Progress.KIND_FIRST_TOKEN]
    ends = [progress for progress in router.progress if progress.kind == Progress.KIND_FINISHED]
    assert [progress.cached_tokens for progress in firsts] == [4, 4]
    assert [progress.output_tokens for progress in ends] == [5, len(answer()) - 5]


async def test_queries_of_one_moment_share_a_message_and_a_stream() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    async with running_gateway(worker, routers=[router], options=ServingOptions()) as gateway:
        results = await asyncio.gather(*(is_answered(gateway) for _ in range(32)))
        await eventually(lambda: len(router.finished()) == 32)
    assert all(results)
    assert worker.streams == 1
    assert router.messages < 32 + 64  # one for each query and each progress would be 96


async def test_progress_waits_for_more_of_it_and_a_query_takes_it_along() -> None:
    async with scripted_route() as (route, stream):
        for number in range(40):
            stream.first_token(f"a{number}", ServingInfo())
            await asyncio.sleep(0)  # the writer would have its turn here
        asking = asyncio.create_task(stream.ask(Query(request_id="b"), lambda _: None))
        await eventually(lambda: any(told.queries for told in route.told))
        assert sum(len(told.progress) for told in route.told) == 40
        assert len(route.told) < 10  # one, unless the machine is so busy that the pause is over in between
        stream.finished("a0", 1)
        await eventually(lambda: sum(len(told.progress) for told in route.told) == 41, what="without a query too")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_without_routers_the_gateway_decides_and_spreads() -> None:
    workers = [make_worker(name, step=asyncio.Event()) for name in "ab"]
    async with running_gateway(*workers, routers=[]) as gateway:
        answers = [asyncio.create_task(is_answered(gateway)) for _ in range(4)]
        await eventually(lambda: sum(len(worker.requests) for worker in workers) == 4)
        assert [len(worker.requests) for worker in workers] == [2, 2]
        for worker in workers:
            assert worker.step is not None
            worker.step.set()
        assert all(await asyncio.gather(*answers))
        info = (await gateway.chat(armature={"include_info": True})).json()["armature"]
        assert info["reason"].startswith("no router could be asked")


async def test_without_routers_prompts_still_find_prefill_workers() -> None:
    worker, prefill = make_worker("a"), make_worker("p")
    async with running_gateway(worker, routers=[]) as gateway:
        member = worker.member
        member.worker.role = ROLE_DECODE
        member.worker.kv_fingerprint = b"same"
        gateway.tell("updated", member)
        helper = prefill.member
        helper.kind, helper.address = "prefill-worker", "127.0.0.1:1"
        helper.worker.role = ROLE_PREFILL
        helper.worker.kv_fingerprint = b"same"
        gateway.tell("joined", helper)
        assert await is_answered(gateway, messages=[{"role": "user", "content": "block " * 300}])
    target = worker.requests[0].prefill
    assert (target.worker_id, target.address, target.kv_fingerprint) == ("p", "127.0.0.1:1", b"same")


async def test_a_silent_router_costs_its_deadline_once_in_a_while() -> None:
    worker = make_worker()
    router = FakeRouter([worker], decide=lambda _: None)
    options = ServingOptions(route_timeout_s=0.3, router_retry_s=60.0)
    async with running_gateway(worker, routers=[router], options=options) as gateway:
        for _ in range(3):
            assert await is_answered(gateway)
    assert len(router.queries) == 1


async def test_a_dead_router_is_passed_over_and_asked_again_when_it_is_back() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    options = ServingOptions(router_retry_s=0.05)
    async with listening(worker):
        server = await listen(router)
        async with running_gateway(worker, routers=[router], options=options, serve=False) as gateway:
            assert await is_answered(gateway)
            await server.stop(0)
            assert await is_answered(gateway)
            assert len(router.queries) == 1
            revived = await listen(router)
            gateway.tell("updated", router.member)

            async def is_asked() -> bool:
                assert await is_answered(gateway)
                return len(router.queries) > 1

            await eventually(is_asked, what="the router is asked again")
            await revived.stop(0)


async def test_the_next_router_takes_over() -> None:
    worker = make_worker()
    routers = {name: FakeRouter([worker], name) for name in ("router-a", "router-b")}
    async with listening(worker):
        servers = {name: await listen(router) for name, router in routers.items()}
        async with running_gateway(worker, routers=list(routers.values()), serve=False) as gateway:
            assert await is_answered(gateway)
            (favourite,) = [name for name, router in routers.items() if router.queries]
            (other,) = set(routers) - {favourite}
            assert await is_answered(gateway)
            assert len(routers[favourite].queries) == 2  # it stays with its favourite
            await servers[favourite].stop(0)
            assert await is_answered(gateway)
            assert len(routers[other].queries) == 1
        await servers[other].stop(0)


async def test_a_router_that_dies_with_a_query_in_hand_costs_no_request() -> None:
    worker = make_worker()
    router = FakeRouter([worker], decide=lambda _: None)
    async with listening(worker):
        server = await listen(router)
        options = ServingOptions(route_timeout_s=30.0)
        async with running_gateway(worker, routers=[router], options=options, serve=False) as gateway:
            asking = asyncio.create_task(is_answered(gateway))
            await eventually(lambda: router.queries)
            await server.stop(0)
            assert await asking


async def test_a_router_that_has_a_query_wait_has_the_time_that_it_asks_for() -> None:
    worker, decided = make_worker(), asyncio.Event()
    router = FakeRouter([worker], late=decided, within_s=60.0)
    options = ServingOptions(route_timeout_s=0.2)
    async with running_gateway(worker, routers=[router], options=options) as gateway:
        asking = asyncio.create_task(is_answered(gateway))
        await eventually(lambda: router.queries)
        asked_s, now_s = asyncio.get_running_loop().time(), asyncio.get_running_loop().time
        await eventually(lambda: now_s() > asked_s + 3 * options.route_timeout_s, what="the usual patience is out")
        assert not asking.done()
        assert not worker.requests
        decided.set()
        assert await asking
    assert len(router.queries) == 1


async def test_a_router_that_breaks_its_promise_is_not_waited_for() -> None:
    worker = make_worker()
    router = FakeRouter([worker], decide=lambda _: None, within_s=0.1)
    async with running_gateway(worker, routers=[router], options=ServingOptions(route_timeout_s=0.2)) as gateway:
        info = (await gateway.chat(armature={"include_info": True})).json()["armature"]
        assert info["reason"].startswith("no router could be asked")
        await eventually(lambda: router.finished() == [router.queries[0].request_id])


async def test_a_router_that_dies_with_waiting_queries_costs_no_request() -> None:
    worker = make_worker()
    router = FakeRouter([worker], decide=lambda _: None, within_s=60.0)
    async with listening(worker):
        server = await listen(router)
        async with running_gateway(worker, routers=[router], serve=False) as gateway:
            asking = [asyncio.create_task(is_answered(gateway)) for _ in range(4)]
            await eventually(lambda: len(router.queries) == 4)
            await server.stop(0)
            assert all(await asyncio.gather(*asking))


async def test_a_client_that_leaves_while_its_query_waits_is_taken_from_the_routers_queue() -> None:
    worker = make_worker()
    router = FakeRouter([worker], decide=lambda _: None, within_s=60.0)
    async with running_gateway(worker, routers=[router]) as gateway:
        asking = asyncio.create_task(gateway.chat())
        await eventually(lambda: router.queries)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: router.finished() == [router.queries[0].request_id])
        assert not worker.requests


async def test_a_query_waits_no_longer_than_its_request_has_time() -> None:
    worker = make_worker()
    router = FakeRouter([worker], decide=lambda _: None, within_s=60.0)
    options = ServingOptions(first_token_timeout_s=0.3)
    async with running_gateway(worker, routers=[router], options=options) as gateway:
        response = await gateway.chat()
        assert response.status_code == 504
        assert "No token was produced within 0.3 s" in response.text
        await eventually(lambda: router.finished() == [router.queries[0].request_id])


async def test_a_router_that_leaves_is_the_last_to_be_asked() -> None:
    worker = make_worker()
    routers = [FakeRouter([worker], name) for name in ("router-a", "router-b")]
    async with running_gateway(worker, routers=routers) as gateway:
        for leaving, staying in (routers, routers[::-1]):
            member = leaving.member
            member.state = MEMBER_STATE_DRAINING
            gateway.tell("updated", member)
            gateway.tell("updated", staying.member)
            before = len(staying.queries)
            assert await is_answered(gateway)
            assert len(staying.queries) == before + 1
        gateway.tell("left", routers[0].member)
        gateway.tell("left", routers[1].member)
        assert await is_answered(gateway)


async def test_a_worker_that_leaves_keeps_its_stream_until_its_answers_are_complete() -> None:
    worker = make_worker(step=asyncio.Event())
    async with running_gateway(worker, options=ServingOptions()) as gateway:
        running = asyncio.create_task(is_answered(gateway))
        await eventually(lambda: worker.requests)
        gateway.tell("left", worker.member)
        assert worker.open_streams == 1
        assert worker.step is not None
        worker.step.set()
        assert await running
        await eventually(lambda: worker.open_streams == 0, what="the stream is closed")


class ScriptedRoute(FakeRouter):
    """A router that never answers by itself, and keeps what it is told."""

    def __init__(self) -> None:
        super().__init__([])
        self.told: list[RouteRequest] = []

    async def Route(self, request_iterator: Any, context: Any) -> AsyncIterator[RouteResponse]:
        async for request in request_iterator:
            self.told.append(request)
            if not self.told:
                yield RouteResponse()


@asynccontextmanager
async def scripted_route() -> AsyncIterator[tuple[ScriptedRoute, _RouterStream]]:
    """Such a router and an open stream to it."""
    route = ScriptedRoute()
    async with listening(route):
        stream = _RouterStream("router-a", ChannelPool().method(route.address, ROUTE))
        running = asyncio.create_task(stream.run())
        try:
            yield route, stream
        finally:
            stream.stop()
            await running


async def test_an_answer_in_the_moment_in_which_its_client_leaves_is_given_back() -> None:
    async with scripted_route() as (route, stream):
        asking = asyncio.create_task(stream.ask(Query(request_id="leaver"), lambda _: None))
        await eventually(lambda: route.told)
        query_id = route.told[0].queries[0].query_id
        placement = Placement(query_id=query_id)
        placement.assigned.worker_id = "worker-a"
        asking.cancel()  # the task has not run since when the answer comes
        stream._on_frames([RouteResponse(placements=[placement])])
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: len(route.told) == 2, what="the router is told")
        (progress,) = route.told[1].progress
        assert (progress.request_id, progress.kind) == ("leaver", Progress.KIND_FINISHED)


async def test_a_router_whose_port_for_streams_is_blocked_is_asked_on_the_other_until_it_is_not() -> None:
    """What was placed through one is reported through it, also when new queries take the other."""
    step = asyncio.Event()
    worker = make_worker(step=step)
    router, unblocked = FakeRouter([worker]), FakeRouter([worker])
    async with listening(unblocked) as (server,):
        router.stream_address = unblocked.address
        await server.stop(0)
    options = ServingOptions(router_port_retry_s=0.05)
    async with running_gateway(worker, routers=[router], options=options) as gateway:
        before = fallbacks()
        asked = [asyncio.create_task(is_answered(gateway))]
        await eventually(lambda: len(worker.requests) == 1)
        assert (len(router.queries), fallbacks()) == (1, before + 1)
        async with listening(unblocked):

            def is_asked() -> bool:
                asked.append(asyncio.create_task(is_answered(gateway)))
                return bool(unblocked.queries)

            await eventually(is_asked, what="queries take the port for streams")
            step.set()
            assert all(await asyncio.gather(*asked))
            for one in (router, unblocked):
                await eventually(lambda one=one: set(one.finished()) == {query.request_id for query in one.queries})


def fallbacks() -> float:
    return REGISTRY.get_sample_value("armature_gateway_router_fallbacks_total") or 0.0
