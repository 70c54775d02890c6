"""What is measured of requests that wait in an engine."""

from array import array

import pytest
from prometheus_client import REGISTRY

from armature.blocks.hashing import BlockHasher
from armature.engines.local import LocalEngine
from armature.engines.queue_times import QueueTimes
from armature.engines.simulated import SimulatedModel, SimulatedRunner
from armature.scheduling.plan import Sequence, Slice, StepPlan
from armature.scheduling.request import FinishReason, Request, Reserved, Sampling, StepOutput, TokenOutput
from tests.support.engine_listener import Listener

MODEL = SimulatedModel(name="m", num_blocks=64, block_size=4, block_bytes=64, context_length=200, max_num_seqs=2)
HASHER = BlockHasher(b"secret", 4)


def request(request_id: str, prompt_tokens: int = 9) -> Request:
    return Request(request_id, list(range(prompt_tokens)), prompt_tokens, 3, HASHER.root("m"), Sampling(seed=1))


def step_of(*request_ids: str) -> StepPlan:
    sequences = [Sequence(request(request_id), array("I", [1]), [1]) for request_id in request_ids]
    return StepPlan(chunks=tuple(Slice(sequence, 0, 1, True) for sequence in sequences))


def measured(what: str) -> float:
    return REGISTRY.get_sample_value(f"armature_worker_queue_seconds_{what}") or 0.0


def test_the_time_to_a_requests_first_step_is_measured_once() -> None:
    times, count, sum_s = QueueTimes(), measured("count"), measured("sum")
    times.submitted("a", 1.0)
    times.submitted("b", 2.0)
    times.began(step_of("a", "long since running"), 4.0)
    times.began(step_of("a", "b"), 5.0)
    assert (measured("count") - count, measured("sum") - sum_s) == (2, pytest.approx(3.0 + 3.0))
    assert not len(times)


def test_room_for_blocks_from_elsewhere_ends_the_waiting() -> None:
    times, sum_s = QueueTimes(), measured("sum")
    times.submitted("a", 1.0)
    times.told(StepOutput(reserved=(Reserved("a", 0, (1,), ()),)), 1.5)
    assert measured("sum") - sum_s == pytest.approx(0.5)
    assert not len(times)


def test_who_is_refused_has_not_waited_for_anything() -> None:
    times, count = QueueTimes(), measured("count")
    times.submitted("a", 1.0)
    times.told(StepOutput(tokens=(TokenOutput("a", 0, (), FinishReason.ERROR),)), 2.0)
    assert not len(times)
    assert measured("count") == count


async def test_an_engine_measures_every_request_that_it_serves() -> None:
    engine, listener, count = LocalEngine(SimulatedRunner(MODEL), HASHER), Listener(), measured("count")
    await engine.start(listener.hear)
    too_long, *served = request("too long", 300), *(request(f"r{number}") for number in range(5))
    try:
        for one in (*served, too_long):
            engine.submit(one)
        await listener.end_of(*served, too_long)
    finally:
        await engine.stop()
    assert measured("count") - count == len(served)
