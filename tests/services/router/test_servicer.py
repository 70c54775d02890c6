"""The Route stream: queries and progress in, placements out, over a real server with scripted workers behind."""

import asyncio
from typing import Any

import grpc
import pytest

from armature.index.packing import pack_hashes
from armature.runtime import telemetry
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import HANDOFF_PULL, MEMBER_STATE_DRAINING, Member
from armature.v1.router_pb2 import Progress, Rejection, RouteRequest
from tests.services.router.harness import ask, progress, query, routing
from tests.support.eventually import eventually
from tests.support.otlp_sink import otlp_sink
from tests.support.scripted_worker import scripted_workers


async def test_a_placement_says_all_that_a_gateway_and_a_decode_worker_need() -> None:
    async with scripted_workers("d1", "p1") as (decode, prefill), routing() as router:
        router.join(decode, prefill)
        call = router.gateway()
        (placement,) = await ask(call, query(7, 1000))
        assigned = placement.assigned
        assert (placement.query_id, assigned.worker_id, assigned.address) == (7, "d1", decode.address)
        assert (assigned.prefill.worker_id, assigned.prefill.address) == ("p1", prefill.address)
        assert assigned.prefill.kv_fingerprint == b"same"
        assert assigned.prefill.handoff == prefill.member.worker.handoff
        assert assigned.predicted_ttft_s > 0.9
        assert assigned.reason.startswith("d1 with prefill on p1 costs")
        (silent,) = await ask(call, query(9, 1000, omit_reason=True))
        assert silent.assigned.worker_id == "d1"
        assert not silent.assigned.reason
        (short,) = await ask(call, query(8, 40))
        assert not short.assigned.HasField("prefill")
        call.cancel()


@pytest.mark.parametrize("is_lean", [True, False], ids=["own port", "port of all services"])
async def test_queries_of_a_message_are_answered_in_one_message(is_lean: bool) -> None:
    async with scripted_workers("d1", "d2") as workers, routing() as router:
        router.join(*workers)
        call = router.gateway(is_lean=is_lean)
        placements = await ask(call, *[query(n, sequence_hashes=pack_hashes([n])) for n in range(1, 9)])
        assert [placement.query_id for placement in placements] == list(range(1, 9))
        chosen = [placement.assigned.worker_id for placement in placements]
        assert (chosen.count("d1"), chosen.count("d2")) == (4, 4)
        call.cancel()


async def test_what_the_index_knows_decides() -> None:
    async with scripted_workers("d1", "d2") as workers, routing() as router:
        router.join(*workers)
        router.core.index.store("d2", range(30))
        call = router.gateway()
        (placement,) = await ask(call, query(1))
        assert (placement.assigned.worker_id, placement.assigned.overlap_tokens) == ("d2", 300)
        call.cancel()


async def test_a_worker_that_had_better_read_a_peers_cache_is_told_of_it() -> None:
    async with scripted_workers("d1", "d2") as (one, two), routing() as router:
        one.report(waiting_prefill_tokens=50_000, pull_bytes_per_s=1e10)
        two.report(running_seqs=1, pull_bytes_per_s=1e10)
        router.join(one, two)
        router.core.index.store("d1", range(90))
        await eventually(lambda: router.core._accounts["d1"].busy_until_s > 0)
        await eventually(lambda: router.core._accounts["d2"].running_seqs == 1)
        call = router.gateway()
        (placement,) = await ask(call, query(1, 1000))
        assigned = placement.assigned
        assert (assigned.worker_id, assigned.prefill.worker_id, assigned.prefill.cached_only) == ("d2", "d1", True)
        assert assigned.prefill.address == one.address
        call.cancel()


async def test_what_workers_report_decides() -> None:
    async with scripted_workers("d1", "d2") as (one, two), routing() as router:
        one.report(running_seqs=10, decode_step_s=0.02)
        router.join(one, two)
        await eventually(lambda: router.core._accounts["d1"].running_seqs == 10)
        call = router.gateway()
        assert (await ask(call, query(1)))[0].assigned.worker_id == "d2"
        one.report(running_seqs=0)
        two.report(waiting_prefill_tokens=5000)
        await eventually(lambda: router.core._accounts["d2"].busy_until_s > 0)
        await eventually(lambda: router.core._accounts["d1"].running_seqs == 0)
        assert (await ask(call, query(2, sequence_hashes=b"")))[0].assigned.worker_id == "d1"
        call.cancel()


async def test_a_broken_load_stream_is_opened_again_and_the_last_report_counts_on() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        worker.report(running_seqs=3)
        router.join(worker)
        await eventually(lambda: router.core._accounts["d1"].running_seqs == 3)
        await worker.stop()
        worker.report(running_seqs=5)
        assert router.core._accounts["d1"].running_seqs == 3
        await worker.start()
        await eventually(lambda: router.core._accounts["d1"].running_seqs == 5)


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -1.0, 1e-300])
async def test_a_load_that_can_not_be_is_not_believed_and_spoils_no_decision(speed: float) -> None:
    async with scripted_workers("d1", "d2") as (one, two), routing() as router:
        one.report(running_seqs=3)
        router.join(one, two)
        await eventually(lambda: router.core._accounts["d1"].running_seqs == 3)
        one.report(running_seqs=0, prefill_tokens_per_s=speed)
        two.report(running_seqs=7)
        await eventually(lambda: router.core._accounts["d2"].running_seqs == 7)
        call = router.gateway()
        assert (await ask(call, query(1)))[0].assigned.worker_id == "d1"
        assert router.core._accounts["d1"].running_seqs == 3
        call.cancel()
        one.report(running_seqs=5, prefill_tokens_per_s=100.0)
        await eventually(lambda: router.core._accounts["d1"].running_seqs == 5)


async def test_nobody_there_is_said_at_once() -> None:
    async with scripted_workers("p1", "d1") as (prefill, decode), routing() as router:
        call = router.gateway()
        (nobody,) = await ask(call, query(1))
        assert nobody.rejected.code == Rejection.CODE_NO_WORKERS
        router.join(prefill)
        assert (await ask(call, query(2)))[0].rejected.code == Rejection.CODE_NO_WORKERS
        router.join(decode)
        assert (await ask(call, query(3)))[0].assigned.worker_id == "d1"
        assert (await ask(call, query(4, model="x")))[0].rejected.code == Rejection.CODE_NO_WORKERS
        full = (await ask(call, query(5, excluded_workers=["d1"])))[0].rejected
        assert full.code == Rejection.CODE_OVERLOADED
        assert full.retry_after_s >= 1
        assert "1 excluded" in full.reason
        call.cancel()


async def test_draining_and_leaving_workers_get_nothing() -> None:
    async with scripted_workers("d1", "d2") as (one, two), routing() as router:
        router.join(one, two)
        draining: Member = one.member
        draining.state = MEMBER_STATE_DRAINING
        router.cell.on_change(MemberChange("updated", draining))
        call = router.gateway()
        assert {(await ask(call, query(n)))[0].assigned.worker_id for n in range(3)} == {"d2"}
        router.cell.on_change(MemberChange("left", two.member))
        assert (await ask(call, query(9)))[0].rejected.code == Rejection.CODE_OVERLOADED
        call.cancel()


async def test_progress_and_broken_streams_keep_the_ledger() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        router.join(worker)
        one, two = router.gateway(), router.gateway()
        await ask(one, query(1), query(2), query(3))
        await ask(two, query(1))
        assert router.core.requests_in_flight == 4
        ended = [progress("r1", Progress.KIND_FIRST_TOKEN), progress("r1", Progress.KIND_FINISHED)]
        await ask(one, query(4), progress=ended)
        assert router.core.requests_in_flight == 4
        # A request that is placed again: its end and its new query travel together.
        await ask(one, query(5, request_id="r2"), progress=[progress("r2", Progress.KIND_FINISHED)])
        assert router.core.requests_in_flight == 4
        one.cancel()
        await eventually(lambda: router.core.requests_in_flight == 1)
        two.cancel()
        await eventually(lambda: router.core.requests_in_flight == 0)


async def test_a_gateway_that_ends_its_stream_is_forgotten_too() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        router.join(worker)
        call = router.gateway()
        await ask(call, query(1))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await eventually(lambda: router.core.requests_in_flight == 0)


@pytest.mark.parametrize("wrong", [{"sequence_hashes": b"torn"}, {"prompt_tokens": 0}])
async def test_a_query_without_sense_is_the_gateways_fault(wrong: dict[str, Any]) -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        router.join(worker)
        call = router.gateway()
        await call.write(RouteRequest(queries=[query(1, **wrong)]))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asyncio.wait_for(call.read(), 10)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_worker_whose_record_is_of_no_use_is_left_out() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        useless = worker.member
        useless.worker.num_blocks = 0
        router.cell.on_change(MemberChange("joined", useless))
        call = router.gateway()
        assert (await ask(call, query(1)))[0].rejected.code == Rejection.CODE_NO_WORKERS
        useful = worker.member
        useful.worker.handoff = HANDOFF_PULL
        router.cell.on_change(MemberChange("updated", useful))
        assert (await ask(call, query(2)))[0].assigned.worker_id == "d1"
        call.cancel()


async def test_a_decision_is_a_span_of_the_requests_trace() -> None:
    async with otlp_sink() as sink, scripted_workers("d1") as (worker,), routing() as router:
        telemetry.setup_tracing("router", sink.address)
        try:
            router.join(worker)
            call = router.gateway()
            trace_id = "0af7651916cd43dd8448eb211c80319c"
            await ask(call, query(1, traceparent=f"00-{trace_id}-b7ad6b7169203331-01"))
            call.cancel()
        finally:
            await asyncio.to_thread(telemetry.shutdown_tracing)
        (route,) = [received for received in sink.spans if received.name == "route"]
        assert route.trace_id == trace_id
        assert route.attributes["request"] == "r1"
        assert route.attributes["reason"].startswith("d1 alone costs")
