"""The engine in its thread: what the event loop sees of it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from armature.blocks.hashing import BlockHasher
from armature.engines.local import LocalEngine
from armature.engines.simulated import SimulatedModel, SimulatedRunner
from armature.scheduling.plan import SampledToken, StepPlan
from armature.scheduling.request import FinishReason, Request, Sampling
from tests.support.engine_listener import DEADLINE_S, Listener

SECRET = b"secret"
MODEL = SimulatedModel(name="m", num_blocks=512, block_size=4, block_bytes=64, context_length=4096)
ROOT = BlockHasher(SECRET, 4).root("m")


class GatedRunner(SimulatedRunner):
    """Computes a step only when told to, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.gate = threading.Semaphore(0)
        self.executing = threading.Event()
        self.ran_far = threading.Event()
        self.num_steps = 0
        self.poison: set[str] = set()
        self.fails_to_open = False

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        self.executing.set()
        assert self.gate.acquire(timeout=DEADLINE_S)
        self.executing.clear()
        self.num_steps += 1
        if self.num_steps == 8:
            self.ran_far.set()
        if any(piece.sequence.request.request_id in self.poison for piece in plan.slices()):
            raise RuntimeError("the model broke")
        return super().execute(plan)

    def open_blocks(self, block_ids: Sequence[int]) -> None:
        # Reservations open several blocks between steps; a growing answer opens one within its step.
        if self.fails_to_open and len(block_ids) > 1:
            raise OSError("no such device")
        super().open_blocks(block_ids)

    def let(self, steps: int) -> None:
        self.gate.release(steps)

    async def is_executing(self) -> None:
        assert await asyncio.to_thread(self.executing.wait, DEADLINE_S)


@asynccontextmanager
async def engine_of(runner: SimulatedRunner) -> AsyncIterator[tuple[LocalEngine, Listener]]:
    engine, listener = LocalEngine(runner, BlockHasher(SECRET, 4)), Listener()
    await engine.start(listener.hear)
    try:
        yield engine, listener
    finally:
        if isinstance(runner, GatedRunner):
            runner.let(100_000)
        await engine.stop()


def request(number: int, *, prompt_tokens: int = 10, max_tokens: int = 8, remote: bool = False) -> Request:
    prompt = [(number * 31 + position) % 1000 for position in range(prompt_tokens)]
    return Request(f"r{number}", prompt, prompt_tokens, max_tokens, ROOT, Sampling(seed=number), remote=remote)


async def test_a_request_is_answered():
    async with engine_of(SimulatedRunner(MODEL)) as (engine, listener):
        engine.submit(request(1))
        (end,) = await listener.end_of(request(1))
        assert end.finish_reason is FinishReason.LENGTH
        assert len(listener.tokens["r1"]) == 8


async def test_many_requests_at_once_are_answered_as_each_alone():
    requests = [request(number, prompt_tokens=5 + number, max_tokens=40) for number in range(64)]
    async with engine_of(SimulatedRunner(MODEL)) as (engine, together):
        for one in requests:
            engine.submit(one)
        await together.end_of(*requests)
    async with engine_of(SimulatedRunner(MODEL)) as (engine, alone):
        for one in requests:
            engine.submit(one)
            await alone.end_of(one)
    assert together.tokens == alone.tokens
    last = together.outputs[-1].load
    assert (last.running_seqs, last.waiting_seqs, last.free_blocks) == (0, 0, last.total_blocks)


async def test_an_abort_is_honoured_before_the_next_step():
    runner = GatedRunner()
    async with engine_of(runner) as (engine, listener):
        engine.submit(request(1))
        await runner.is_executing()
        engine.abort("r1")
        runner.let(1)
        (end,) = await listener.end_of(request(1))
        assert end.finish_reason is FinishReason.CANCELLED
        assert len(listener.tokens["r1"]) == 1
        assert runner.num_steps == 1


async def test_a_reservation_is_told_before_the_step_that_runs_meanwhile():
    runner = GatedRunner()
    async with engine_of(runner) as (engine, listener):
        engine.submit(request(1))
        await runner.is_executing()
        engine.submit(request(2, remote=True))
        runner.let(1)
        await listener.until(lambda: bool(listener.reserved))
        assert runner.num_steps == 1
        reserved = listener.reserved[0]
        assert len(reserved.block_ids) == 2
        assert engine.memory.digests(reserved.block_ids) == [bytes(16)] * 2


async def test_a_poisonous_request_ends_with_an_error_and_the_engine_goes_on():
    runner = GatedRunner()
    runner.poison = {"r1"}
    runner.let(1000)
    async with engine_of(runner) as (engine, listener):
        engine.submit(request(1))
        (end,) = await listener.end_of(request(1))
        assert end.finish_reason is FinishReason.ERROR
        assert end.error == "step failed: RuntimeError: the model broke"
        assert listener.outputs[-1].load.failed_steps_in_a_row == 1
        engine.submit(request(2))
        (end,) = await listener.end_of(request(2))
        assert end.finish_reason is FinishReason.LENGTH
        assert listener.outputs[-1].load.failed_steps_in_a_row == 0


async def test_of_a_batch_only_the_poisonous_request_ends_with_an_error():
    runner = GatedRunner()
    runner.poison = {"r2"}
    requests = [request(number) for number in range(5)]
    async with engine_of(runner) as (engine, listener):
        for one in requests:
            engine.submit(one)
        runner.let(1000)
        ends = await listener.end_of(*requests)
        reasons = [end.finish_reason for end in ends]
        assert reasons == [FinishReason.ERROR if number == 2 else FinishReason.LENGTH for number in range(5)]


async def test_a_runner_that_returns_too_few_tokens_has_failed_its_step():
    runner = GatedRunner()
    runner.execute = lambda plan: []
    async with engine_of(runner) as (engine, listener):
        engine.submit(request(1))
        (end,) = await listener.end_of(request(1))
        assert end.error == "step failed: RuntimeError: the runner returned 0 tokens for 1 slices that sample"


async def test_an_engine_that_breaks_answers_everyone_with_an_error():
    runner = GatedRunner()
    async with engine_of(runner) as (engine, listener):
        engine.submit(request(1))
        runner.let(1)
        await listener.until(lambda: bool(listener.tokens["r1"]))
        await runner.is_executing()
        runner.fails_to_open = True
        engine.submit(request(2, remote=True))
        runner.let(1)
        ends = await listener.end_of(request(1), request(2))
        engine.abort("r1")
        engine.submit(request(3))
        ends += await listener.end_of(request(3))
        assert [end.error for end in ends] == ["the engine has failed: OSError: no such device"] * 3


async def test_nothing_is_told_after_stop_has_returned():
    runner = SimulatedRunner(MODEL)
    engine, listener = LocalEngine(runner, BlockHasher(SECRET, 4)), Listener()
    await engine.start(listener.hear)
    for number in range(8):
        engine.submit(request(number, max_tokens=2000))
    await listener.until(lambda: len(listener.outputs) > 10)
    await engine.stop()
    num_outputs = len(listener.outputs)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(listener.outputs) == num_outputs
    assert not any(thread.name == "engine" for thread in threading.enumerate())
    await engine.stop()


async def test_an_engine_that_never_started_can_be_stopped():
    await LocalEngine(SimulatedRunner(MODEL), BlockHasher(SECRET, 4)).stop()


async def test_an_idle_engine_sleeps():
    async with engine_of(SimulatedRunner(MODEL)) as (engine, listener):
        engine.submit(request(1))
        await listener.end_of(request(1))
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "engine"]
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        before_s = time.clock_gettime(clock)
        await asyncio.sleep(0.1)
        assert time.clock_gettime(clock) - before_s < 0.01


async def test_the_engine_does_not_run_away_from_a_loop_that_stalls():
    runner = GatedRunner()
    async with engine_of(runner) as (engine, _):
        engine.submit(request(1, max_tokens=3000))
        await runner.is_executing()
        runner.let(1000)
        # The loop is blocked on purpose, and nothing is delivered.
        assert not runner.ran_far.wait(0.05)


async def test_changes_without_tokens_are_told_too():
    async with engine_of(SimulatedRunner(MODEL)) as (engine, listener):
        engine.submit(request(1, remote=True))
        await listener.until(lambda: bool(listener.reserved))
        reserved = listener.reserved[0]
        engine.land("r1", 2)
        await listener.until(lambda: [d for o in listener.outputs for e in o.kv_events for d in e.digests] != [])
        engine.finish_remote("r1", 2)
        await listener.end_of(request(1))
        stored = [digest for output in listener.outputs for event in output.kv_events for digest in event.digests]
        assert tuple(stored[:2]) == reserved.digests
        engine.clear_cache()
        await listener.until(lambda: listener.outputs[-1].kv_events[-1:] != () and not listener.outputs[-1].tokens)


async def test_event_numbers_have_no_gaps():
    async with engine_of(SimulatedRunner(MODEL)) as (engine, listener):
        requests = [request(number, prompt_tokens=200, max_tokens=200) for number in range(30)]
        for one in requests:
            engine.submit(one)
        await listener.end_of(*requests)
        numbers = [event.seq for output in listener.outputs for event in output.kv_events]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > 30


async def test_steps_are_measured():
    async with engine_of(SimulatedRunner(MODEL)) as (engine, listener):
        engine.submit(request(1, prompt_tokens=100))
        await listener.end_of(request(1))
        load = listener.outputs[-1].load
        assert load.prefill_tokens_per_s > 0
        assert load.decode_step_s > 0
        # One prompt after the other, until enough steps with prompts have been seen to tell their costs.
        for number in range(2, 10):
            engine.submit(request(number, prompt_tokens=100))
            await listener.end_of(request(number))
        assert listener.outputs[-1].load.step_costs is not None


def test_a_hasher_of_another_block_size_is_refused():
    with pytest.raises(ValueError, match="block size"):
        LocalEngine(SimulatedRunner(MODEL), BlockHasher(SECRET, 8))


async def test_a_listener_that_raises_does_not_stop_the_engine():
    listener = Listener()
    raised: list[object] = []
    engine = LocalEngine(SimulatedRunner(MODEL), BlockHasher(SECRET, 4))

    def hear(output: object, hear: Callable[..., None] = listener.hear) -> None:
        hear(output)
        raise RuntimeError("the host broke")

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: raised.append(context["exception"]))
    try:
        await engine.start(hear)
        engine.submit(request(1, max_tokens=20))
        await listener.end_of(request(1))
        await engine.stop()
    finally:
        loop.set_exception_handler(before)
    assert len(raised) >= 20
