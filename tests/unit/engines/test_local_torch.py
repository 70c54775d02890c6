"""A real model in the engine: sharing steps, blocks and a pool that is too small changes no token."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from armature.blocks.hashing import BlockHasher
from armature.engines.local import LocalEngine
from armature.engines.torch.runner import torch_engine_runner
from armature.scheduling.request import Request, Sampling
from tests.support.engine_listener import Listener
from tests.support.models import make_model

SECRET = b"secret"
ROOT = BlockHasher(SECRET, 8).root("tiny")
BEGINNING = list(range(5, 29))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), "qwen3")


def requests() -> list[Request]:
    """Greedy and random ones, with prompts that share a beginning in pairs."""
    made: list[Request] = []
    for number in range(8):
        prompt = BEGINNING[: 8 * (number // 2)] + [(number * 37 + position) % 500 for position in range(9 + number)]
        sampling = Sampling(temperature=0.0 if number % 2 else 0.8, seed=number, ignore_eos=True)
        made.append(Request(f"r{number}", prompt, len(prompt), 24, ROOT, sampling))
    return made


async def answers(model: Path, groups: Sequence[Sequence[Request]], *, num_blocks: int, budget: int) -> Listener:
    runner = torch_engine_runner(
        model,
        model_name="tiny",
        block_size=8,
        num_blocks=num_blocks,
        max_num_seqs=6,
        max_num_batched_tokens=budget,
        threads=1,
    )
    engine, listener = LocalEngine(runner, BlockHasher(SECRET, 8)), Listener()
    await engine.start(listener.hear)
    for group in groups:
        for request in group:
            engine.submit(request)
        await listener.end_of(*group)
    await engine.stop()
    return listener


async def test_preempted_chunked_and_batched_requests_are_answered_as_each_alone(model: Path):
    alone = await answers(model, [[request] for request in requests()], num_blocks=64, budget=256)
    crowded = await answers(model, [requests()], num_blocks=16, budget=12)
    assert crowded.outputs[-1].load.preemptions > 0
    assert crowded.tokens == alone.tokens
    assert [len(tokens) for tokens in alone.tokens.values()] == [24] * 8
    assert crowded.outputs[-1].load.free_blocks == 15
