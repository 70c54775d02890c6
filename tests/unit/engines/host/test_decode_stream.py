"""What a client of `Decode.Stream` sees of a worker that computes everything itself."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from armature.engines.host.conversion import pack_tokens
from armature.runtime.channels import CHANNEL_OPTIONS
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import DecodeFrame, DecodeRequest, WorkerError
from armature.v1.worker_pb2_grpc import DecodeStub
from tests.support.decode_client import DecodeClient, decode_client
from tests.support.eventually import eventually
from tests.support.workers import Setup, Worker, worker

PROMPT = list(range(10, 60))


@pytest.fixture
async def serving() -> AsyncIterator[Worker]:
    async with worker(Setup(role="aggregated", transport="grpc")) as running:
        yield running


@pytest.fixture(params=["grpcio", "lean"])
def address(request: pytest.FixtureRequest, serving: Worker) -> str:
    """Of either server that the stream can be opened on."""
    return serving.address if request.param == "grpcio" else serving.server.stream_address


@pytest.fixture
async def client(address: str) -> AsyncIterator[DecodeClient]:
    async with decode_client(address) as opened:
        yield opened


def is_idle(running: Worker) -> bool:
    load = running.load
    return not (load.running_seqs or load.waiting_seqs) and load.free_blocks == load.total_blocks


async def test_an_answer_comes_whole_in_order_and_says_how_it_was_served(client: DecodeClient) -> None:
    answer = await (await client.ask(PROMPT, max_tokens=20)).wait()
    assert len(answer.tokens) == 20
    assert answer.finish_reason == common.FINISH_REASON_LENGTH
    assert answer.info == common.ServingInfo(decode_worker="worker")
    again = await (await client.ask(PROMPT, max_tokens=20)).wait()
    assert again.tokens == answer.tokens
    assert again.info.cached_tokens == 48


async def test_a_moved_request_goes_on_where_it_was(client: DecodeClient) -> None:
    whole = await (await client.ask(PROMPT, max_tokens=20)).wait()
    moved = await (await client.ask([*PROMPT, *whole.tokens[:7]], max_tokens=20, prompt_tokens=len(PROMPT))).wait()
    assert moved.tokens == whole.tokens[7:]


async def test_log_probabilities_come_when_asked_for(client: DecodeClient) -> None:
    sampling = common.SamplingParams(temperature=0.0, logprobs=True, top_logprobs=2)
    answer = await (await client.ask(PROMPT, max_tokens=5, sampling=sampling)).wait()
    logprobs = [one for delta in answer.deltas for one in delta.logprobs]
    assert [one.tokens[0].token_id for one in logprobs] == answer.tokens
    assert all(len(one.tokens) == 3 for one in logprobs)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"model": "other"}, "other"), ({"tokens": []}, "token_ids"), ({"tokens": [32000]}, "vocabulary"),
        ({"max_tokens": 0}, "max_tokens"), ({"tokens": [1] * 9000}, "pool"), ({"timeout_s": -1.0}, "timeout_s"),
        ({"tokens": [1] * 40000}, "context"), ({"prompt_tokens": 51}, "prompt_tokens"),
        ({"sampling": common.SamplingParams(top_p=2.0)}, "top_p"),
    ],
)  # fmt: skip
async def test_a_wrong_request_is_told_what_is_wrong(
    client: DecodeClient, wrong: dict[str, Any], complaint: str
) -> None:
    answer = await (await client.ask(**{"tokens": PROMPT, **wrong})).wait()
    assert answer.finish_reason == common.FINISH_REASON_ERROR
    assert answer.error.code == WorkerError.CODE_INVALID
    assert complaint in answer.error.message
    good = await (await client.ask(PROMPT)).wait()
    assert good.finish_reason == common.FINISH_REASON_LENGTH


async def test_a_cancelled_request_ends_at_once_and_frees_its_blocks(client: DecodeClient, serving: Worker) -> None:
    answer = await client.ask(PROMPT, max_tokens=100_000)
    await answer.first_token()
    await client.cancel(answer)
    await answer.wait()
    assert answer.finish_reason == common.FINISH_REASON_CANCELLED
    await eventually(lambda: is_idle(serving))
    assert len(serving.host.generations) == 0


async def test_an_id_may_be_used_again_after_its_end_but_not_before(client: DecodeClient) -> None:
    first = await client.ask(PROMPT, stream_id=9)
    await first.wait()
    await (await client.ask(PROMPT, stream_id=9)).wait()
    await client.ask(PROMPT, max_tokens=100_000, stream_id=9)
    twin = await client.ask(PROMPT, max_tokens=100_000, stream_id=9)
    await twin.wait()
    assert twin.error.code == WorkerError.CODE_INVALID


async def test_a_request_that_is_late_ends_with_its_deadline(client: DecodeClient, serving: Worker) -> None:
    answer = await (await client.ask(PROMPT, max_tokens=100_000, timeout_s=0.1)).wait()
    assert answer.error.code == WorkerError.CODE_DEADLINE_EXCEEDED
    assert 0 < len(answer.tokens) < 100_000
    await eventually(lambda: is_idle(serving))


async def test_everything_on_a_broken_stream_is_stopped(serving: Worker, address: str) -> None:
    async with decode_client(address) as client:
        answers = [await client.ask(PROMPT, max_tokens=100_000) for _ in range(5)]
        await asyncio.gather(*(answer.first_token() for answer in answers))
    await eventually(lambda: is_idle(serving))
    await eventually(lambda: not len(serving.host.generations))


async def test_what_was_asked_is_answered_after_the_client_has_closed_its_side(client: DecodeClient) -> None:
    answers = [await client.ask(PROMPT, max_tokens=50) for _ in range(3)]
    await client.call.done_writing()
    for answer in answers:
        await answer.wait()
    await eventually(client.call.done)
    assert await client.call.code() == grpc.StatusCode.OK


async def test_a_step_of_many_requests_is_one_frame(client: DecodeClient) -> None:
    answers = [await client.ask([i, *PROMPT], max_tokens=200) for i in range(16)]
    await asyncio.gather(*(answer.wait() for answer in answers))
    assert client.frames < 16 * 200 / 4


async def test_a_draining_worker_finishes_what_it_has_and_takes_nothing_new(
    client: DecodeClient, serving: Worker
) -> None:
    running = await client.ask(PROMPT, max_tokens=2000)
    await running.first_token()
    draining = asyncio.create_task(serving.host.drain())
    await eventually(lambda: serving.host.generations.is_draining)
    refused = await (await client.ask(PROMPT)).wait()
    assert refused.error.code == WorkerError.CODE_UNAVAILABLE
    assert not draining.done() or running.ended.is_set()
    await running.wait()
    await asyncio.wait_for(draining, 5)
    assert len(running.tokens) == 2000


async def test_more_requests_than_may_wait_are_sent_elsewhere() -> None:
    setup = Setup(role="aggregated", transport="grpc", max_num_seqs=1, max_num_batched_tokens=64, max_waiting=2)
    async with worker(setup) as serving, decode_client(serving.address) as client:
        answers = [await client.ask(PROMPT, max_tokens=100_000) for _ in range(6)]
        await eventually(lambda: sum(answer.ended.is_set() for answer in answers) == 3)
        refused = [answer for answer in answers if answer.ended.is_set()]
        assert {answer.error.code for answer in refused} == {WorkerError.CODE_UNAVAILABLE}


async def test_a_client_that_does_not_read_loses_its_requests_and_nobody_else_does(
    serving: Worker, client: DecodeClient, address: str
) -> None:
    def slow_readers() -> float:
        return REGISTRY.get_sample_value("armature_worker_slow_readers_total") or 0.0

    before = slow_readers()
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stuck = DecodeStub(channel).Stream()
        sampling = common.SamplingParams(temperature=0.0, logprobs=True, top_logprobs=20)  # fills buffers quickly
        for stream_id in range(8):
            request = DecodeRequest(
                stream_id=stream_id, request_id="r", model="m", token_ids=pack_tokens(PROMPT), max_tokens=8000,
                sampling=sampling,
            )  # fmt: skip
            await stuck.write(DecodeFrame(requests=[request]))
        await eventually(lambda: serving.load.running_seqs >= 1)
        other = await (await client.ask(PROMPT, max_tokens=30)).wait()
        assert len(other.tokens) == 30
        await eventually(lambda: slow_readers() > before, 30)
        await eventually(lambda: is_idle(serving))
        assert len(serving.host.generations) == 0
        # Nothing is missing in what it finds when it reads at last.
        next_index, ended = dict.fromkeys(range(8), 0), set[int]()
        while len(ended) < 8:
            for delta in (await stuck.read()).deltas:
                assert delta.output_index == next_index[delta.stream_id]
                next_index[delta.stream_id] += len(delta.token_ids)
                if delta.finish_reason:
                    assert delta.finish_reason == common.FINISH_REASON_CANCELLED
                    ended.add(delta.stream_id)
        stuck.cancel()
