"""A worker changes its role while it serves: nothing that runs ends, and the cell is told."""

import grpc
import pytest

from armature.engines.host.duty import GRACE_S, Duty
from armature.runtime.errors import UnavailableError
from armature.v1 import common_pb2 as common
from armature.v1 import worker_pb2 as pb
from armature.v1.worker_pb2_grpc import WorkerStub
from tests.support.decode_client import decode_client
from tests.support.workers import Setup, worker

PROMPT = list(range(1, 200))


def test_a_former_role_is_served_until_the_news_has_come_round() -> None:
    now = [0.0]
    duty = Duty(common.ROLE_DECODE, lambda: now[0])
    assert duty.has_helpers and not duty.computes_for_others
    duty.change(common.ROLE_PREFILL)
    now[0] = GRACE_S - 0.1
    duty.check_answers()
    assert duty.computes_for_others and not duty.has_helpers
    now[0] = GRACE_S
    with pytest.raises(UnavailableError, match="answers none"):
        duty.check_answers()


def test_the_same_role_again_changes_nothing() -> None:
    duty = Duty(common.ROLE_PREFILL, lambda: 0.0)
    duty.change(common.ROLE_PREFILL)
    with pytest.raises(UnavailableError):
        duty.check_answers()


async def test_a_flipped_worker_ends_its_answers_keeps_its_cache_and_serves_the_new_role() -> None:
    setup = Setup(transport="grpc", step_s=0.02)
    async with (
        worker(setup) as flipped,
        worker(Setup(transport="grpc", member_id="other")) as other,
        decode_client(flipped.address) as client,
        decode_client(other.address) as elsewhere,
    ):
        stub = WorkerStub(flipped.channels.get(flipped.address))
        running = await client.ask(PROMPT, max_tokens=20)
        await running.first_token()
        answer = await stub.SetRole(pb.SetRoleRequest(role=common.ROLE_PREFILL), timeout=5)
        assert answer.former_role == common.ROLE_DECODE
        assert [record.role for record in flipped.records] == [common.ROLE_PREFILL]
        late = await client.ask(PROMPT[:50], max_tokens=2)
        fetched = await (await elsewhere.ask(PROMPT, prefill=flipped.target())).wait()
        assert fetched.info.transferred_tokens == 192 and fetched.info.prefill_cached_tokens == 192
        for one in (running, late):
            assert (await one.wait()).finish_reason == common.FINISH_REASON_LENGTH
        assert len(running.tokens) == 20


async def test_a_role_that_is_none_is_refused() -> None:
    async with worker(Setup(transport="grpc")) as one:
        stub = WorkerStub(one.channels.get(one.address))
        with pytest.raises(grpc.aio.AioRpcError, match="ROLE_AGGREGATED, ROLE_PREFILL, ROLE_DECODE"):
            await stub.SetRole(pb.SetRoleRequest(), timeout=5)
        await stub.SetRole(pb.SetRoleRequest(role=common.ROLE_DECODE), timeout=5)
        assert not one.records


async def test_a_prefill_worker_turns_requests_away_as_one_that_drains() -> None:
    async with worker(Setup(role="prefill", transport="grpc")) as one, decode_client(one.address) as client:
        refused = await (await client.ask(PROMPT)).wait()
        assert refused.error.code == pb.WorkerError.CODE_UNAVAILABLE
