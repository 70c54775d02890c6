"""Whatever single process dies, every stream ends with exactly the text of the undisturbed run, and nothing leaks."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Callable

import grpc
import jsonschema
import pytest

from armature.v1.common_pb2 import FINISH_REASON_STOP, Grammar, SamplingParams
from tests.support.asking import Answer, ask, channel_to
from tests.support.cell import Cell, running_cell
from tests.support.etcd import EtcdServer
from tests.support.eventually import eventually
from tests.support.rest import until_at_rest


def fresh_prompt(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(300, 4000) for _ in range(length)]


NEW_TOKENS = 300
# The two likeliest tokens of these answers are 0.01 or more apart in logits, so rounding can't tell in which batch
# they were computed.
PROMPTS = [fresh_prompt(i, length) for i, length in enumerate((20, 90, 300, 60))]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 20, "maxLength": 40},
        "sizes": {
            "type": "array",
            "items": {"type": "integer", "maximum": 999, "minimum": 0},
            "minItems": 50,
            "maxItems": 60,
        },
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
STRUCTURED = len(PROMPTS) - 1
"""The last of the answers must match the schema, wherever it is made."""


@pytest.fixture(scope="module")
async def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    await server.start()
    yield server
    await server.kill()


@pytest.fixture(scope="module")
async def cell(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    flags = {"router": ("--disaggregation", "always")}
    async with running_cell(
        tmp_path_factory.mktemp("deaths"),
        etcd_server.address,
        flags=flags,
        worker_flags=("--lease-s", "3", "--read-timeout-s", "2"),
    ) as cell:
        yield cell


@pytest.fixture(scope="module")
async def undisturbed(cell: Cell) -> list[Answer]:
    async with channel_to(cell) as channel:
        answers = await ask_all(channel, PROMPTS, NEW_TOKENS)
    assert answers[STRUCTURED].finish_reason == FINISH_REASON_STOP
    jsonschema.validate(json.loads(answers[STRUCTURED].text), SCHEMA)
    return answers


async def ask_all(channel: grpc.aio.Channel, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
    return await asyncio.gather(*(ask_one(channel, prompt, max_tokens) for prompt in prompts))


async def ask_one(
    channel: grpc.aio.Channel, prompt: list[int], max_tokens: int, on_tokens: Callable[[Answer], object] | None = None
) -> Answer:
    if prompt is not PROMPTS[STRUCTURED]:
        return await ask(channel, prompt, max_tokens, on_tokens=on_tokens)
    grammar, sampling = Grammar(json_schema=json.dumps(SCHEMA)), SamplingParams(seed=7)
    return await ask(channel, prompt, max_tokens, grammar=grammar, sampling=sampling, on_tokens=on_tokens)


class Streams:
    """Answers under way, with a moment at which all have begun and the last one has not got far."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.progress = [0] * len(PROMPTS)
        self.tasks = [asyncio.create_task(self._ask(channel, i)) for i in range(len(PROMPTS))]

    async def _ask(self, channel: grpc.aio.Channel, index: int) -> Answer:
        def note(answer: Answer) -> None:
            self.progress[index] = len(answer.token_ids)

        return await ask_one(channel, PROMPTS[index], NEW_TOKENS, note)

    async def in_mid_stream(self) -> None:
        await eventually(lambda: all(count >= 5 for count in self.progress), what="all streams have begun")
        assert min(self.progress) < NEW_TOKENS // 2, "the last stream was over before the test began"


def assert_same(answers: list[Answer], undisturbed: list[Answer]) -> None:
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
        assert answer.finish_reason == expected.finish_reason


async def assert_healed(cell: Cell, undisturbed: list[Answer]) -> None:
    async with channel_to(cell) as channel:
        assert_same(await ask_all(channel, PROMPTS, NEW_TOKENS), undisturbed)
    await until_at_rest(cell)


@pytest.mark.parametrize(
    "victim",
    [
        "decode-worker-0",
        pytest.param("decode-worker-1", marks=pytest.mark.slow),
        "prefill-worker-0",
        "kv-index",
        "router",
    ],
)
async def test_a_killed_service_costs_no_stream_a_token(victim: str, cell: Cell, undisturbed: list[Answer]) -> None:
    service = cell.services[victim]
    async with channel_to(cell) as channel:
        streams = Streams(channel)
        await streams.in_mid_stream()
        await service.kill()
        answers = await asyncio.gather(*streams.tasks)
    assert_same(answers, undisturbed)
    if victim.startswith("decode"):
        assert all(not a.info.migrations or a.info.decode_worker != service.member_id for a in answers)
    await service.spawn()
    await assert_healed(cell, undisturbed)


async def test_a_prefill_worker_killed_in_mid_prefill_costs_time_only(cell: Cell) -> None:
    prefill = cell.services["prefill-worker-0"]
    async with channel_to(cell) as channel:
        prompts, task = await asked_and_being_prefilled(cell, channel)
        await prefill.kill()
        answers = await task
        await prefill.spawn()
        assert_same(await ask_all(channel, prompts, 10), answers)
    await until_at_rest(cell)


async def asked_and_being_prefilled(
    cell: Cell, channel: grpc.aio.Channel
) -> tuple[list[list[int]], asyncio.Task[list[Answer]]]:
    """Ask prompts unknown to every cache until the prefill worker is seen computing some.

    A worker that an earlier test killed is avoided for a while, and the router then lets decode workers prefill.
    """
    for attempt in range(20):
        prompts = [fresh_prompt(100 + 4 * attempt + i, 3500) for i in range(4)]  # together some seconds of prefill
        task = asyncio.create_task(ask_all(channel, prompts, 10))
        while not task.done():
            if (await cell.services["prefill-worker-0"].metrics())["armature_worker_staged_blocks"] > 0:
                return prompts, task
            await asyncio.sleep(0.02)
        await task
    raise AssertionError("the prefill worker was given nothing in 20 attempts")


async def test_etcd_may_die_and_come_back(cell: Cell, etcd_server: EtcdServer, undisturbed: list[Answer]) -> None:
    async with channel_to(cell) as channel:
        streams = Streams(channel)
        await streams.in_mid_stream()
        await etcd_server.kill()
        assert_same(await asyncio.gather(*streams.tasks), undisturbed)
        # Traffic goes on without etcd.
        assert_same(await ask_all(channel, PROMPTS, NEW_TOKENS), undisturbed)
    await etcd_server.start()
    await assert_healed(cell, undisturbed)


@pytest.mark.slow
async def test_without_any_worker_left_a_stream_ends_with_a_clean_error(cell: Cell, undisturbed: list[Answer]) -> None:
    decoders = [cell.services["decode-worker-0"], cell.services["decode-worker-1"]]
    async with channel_to(cell) as channel:
        streams = Streams(channel)
        await streams.in_mid_stream()
        for service in decoders:
            await service.kill()
        async with asyncio.timeout(40):
            errors = await asyncio.gather(*streams.tasks, return_exceptions=True)
    cut = [error for error in errors if isinstance(error, grpc.aio.AioRpcError)]
    assert cut, "every stream was over before its worker died"
    assert all(error.code() is grpc.StatusCode.UNAVAILABLE for error in cut)
    for answer, expected in zip(errors, undisturbed, strict=True):
        assert answer in cut or answer == expected or answer.token_ids == expected.token_ids  # pyright: ignore
    for service in decoders:
        await service.spawn()
    await assert_healed(cell, undisturbed)


@pytest.mark.slow
async def test_a_frozen_decode_worker_loses_its_streams_to_the_others(cell: Cell, undisturbed: list[Answer]) -> None:
    victim = cell.services["decode-worker-0"]
    async with channel_to(cell) as channel:
        streams = Streams(channel)
        await streams.in_mid_stream()
        victim.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                assert_same(await asyncio.gather(*streams.tasks), undisturbed)
        finally:
            victim.signal(signal.SIGCONT)
    await assert_healed(cell, undisturbed)
