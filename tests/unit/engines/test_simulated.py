"""The simulated engine: made-up tokens, real blocks."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from armature.blocks.hashing import BlockHasher
from armature.engines.host_memory import HostBlockMemory
from armature.engines.local import LocalEngine
from armature.engines.simulated import SimulatedModel, SimulatedRunner, simulated_engine
from armature.engines.step_clock import StepClock
from armature.performance.faster import Faster
from armature.performance.presets import PRESETS
from armature.performance.step import StepShape
from armature.scheduling.plan import Sequence, Slice, StepPlan
from armature.scheduling.request import FinishReason, Request, Sampling, Work
from tests.support.engine_listener import Listener

SECRET = b"secret"
MODEL = SimulatedModel(name="m", num_blocks=64, block_size=4, block_bytes=64, vocab_size=100, answer_tokens=6)
ROOT = BlockHasher(SECRET, 4).root("m")
PROMPT = list(range(30))
DEFAULT = Sampling()


async def answer(model: SimulatedModel, request: Request) -> Listener:
    engine, listener = simulated_engine(model, SECRET), Listener()
    await engine.start(listener.hear)
    engine.submit(request)
    await listener.end_of(request)
    await engine.stop()
    return listener


def generate(sampling: Sampling = DEFAULT, *, max_tokens: int = 20, remote: bool = False) -> Request:
    return Request("r", PROMPT, len(PROMPT), max_tokens, ROOT, sampling, remote=remote)


async def test_answers_depend_on_the_seed_and_on_nothing_else():
    first = await answer(MODEL, generate(Sampling(seed=1)))
    again = await answer(MODEL, generate(Sampling(seed=1)))
    other = await answer(MODEL, generate(Sampling(seed=2)))
    assert first.tokens == again.tokens
    assert first.tokens != other.tokens


async def test_a_greedy_answer_does_not_depend_on_the_seed():
    one = await answer(MODEL, generate(Sampling(temperature=0.0, seed=1)))
    other = await answer(MODEL, generate(Sampling(temperature=0.0, seed=2)))
    assert one.tokens == other.tokens


async def test_an_answer_ends_where_it_was_configured_to():
    listener = await answer(MODEL, generate())
    assert len(listener.tokens["r"]) == 7
    assert listener.tokens["r"][-1] == 2
    assert listener.ends["r"].finish_reason is FinishReason.STOP


async def test_an_answer_does_not_end_before_min_tokens():
    listener = await answer(MODEL, generate(Sampling(min_tokens=12)))
    assert len(listener.tokens["r"]) == 13


async def test_without_configuration_an_answer_never_ends_by_itself():
    listener = await answer(SimulatedModel(name="m", vocab_size=31), generate(max_tokens=500))
    assert listener.ends["r"].finish_reason is FinishReason.LENGTH
    assert 2 not in listener.tokens["r"]


async def test_log_probabilities_come_if_asked_for():
    listener = await answer(MODEL, generate(Sampling(top_logprobs=2)))
    told = [logprobs for output in listener.outputs for tokens in output.tokens for logprobs in tokens.logprobs]
    assert len(told) == 7
    assert [logprobs.token_ids[0] for logprobs in told] == listener.tokens["r"]
    assert all(len(logprobs.token_ids) == len(logprobs.logprobs) == 3 for logprobs in told)


async def test_a_model_directory_gives_vocabulary_end_tokens_and_context(tmp_path: Path):
    config = {"vocab_size": 1234, "eos_token_id": [7, 8], "max_position_embeddings": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    info = simulated_engine(SimulatedModel(name="m", path=str(tmp_path)), SECRET).info
    assert (info.vocab_size, info.eos_token_ids, info.context_length) == (1234, (7, 8), 99)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}))
    assert simulated_engine(SimulatedModel(name="m", path=str(tmp_path)), SECRET).info.eos_token_ids == ()


def test_memory_is_where_it_says_and_ends_blocks_with_digests():
    memory = HostBlockMemory(4, 32)
    memory.write([3, 1], b"c" * 32 + b"a" * 32)
    assert memory.read([1, 2, 3]) == b"a" * 32 + bytes(32) + b"c" * 32
    memory.set_digest(1, b"d" * 16)
    assert memory.digests([1, 0]) == [b"d" * 16, bytes(16)]
    assert memory.read([1]) == b"a" * 16 + b"d" * 16
    with pytest.raises(ValueError, match="the digest alone takes 16"):
        HostBlockMemory(4, 8)


def test_steps_take_what_the_performance_model_says() -> None:
    now_s, slept_s = 0.0, list[float]()

    def sleep(duration_s: float) -> None:
        nonlocal now_s
        slept_s.append(duration_s)
        now_s += duration_s

    model = PRESETS["qwen3-32b-tp2-h200"].performance
    runner = SimulatedRunner(replace(MODEL, performance=Faster(model, 10)), StepClock(lambda: now_s, sleep))
    sequence = Sequence(generate(), [*PROMPT], [1, 2, 3, 4, 5, 6, 7, 8])
    runner.execute(StepPlan((Slice(sequence, 0, 20, samples=False),), prefill_tokens=20))
    runner.execute(StepPlan((Slice(sequence, 20, 10, samples=True),), prefill_tokens=10))
    runner.rest()
    now_s = 50.0
    sequence.token_ids.append(7)
    runner.execute(StepPlan((), decodes=(sequence,)))
    shapes = [StepShape(0, 0, 20, 200), StepShape(0, 0, 10, 250), StepShape(1, 31)]
    assert slept_s == pytest.approx([model.step_s(shape) / 10 for shape in shapes])


def move_blocks(source: LocalEngine, target: LocalEngine, there: tuple[int, ...], here: tuple[int, ...]) -> None:
    """What a transport does."""
    target.memory.write(here, source.memory.read(there))


async def test_a_prompt_prefilled_elsewhere_gives_the_same_answer():
    alone = await answer(MODEL, generate())
    prefill, decode = simulated_engine(MODEL, SECRET), simulated_engine(MODEL, SECRET)
    staged, listener = Listener(), Listener()
    await prefill.start(staged.hear)
    await decode.start(listener.hear)
    decode.submit(generate(remote=True))
    await listener.until(lambda: bool(listener.reserved))
    reserved = listener.reserved[0]
    prefill.submit(Request("r", PROMPT, len(PROMPT), 1, ROOT, work=Work.PREFILL, first_block=reserved.first_block))
    await staged.until(lambda: bool(staged.staged) and staged.staged[-1].is_last)
    there = tuple(block_id for piece in staged.staged for block_id in piece.block_ids)
    assert len(there) == len(reserved.block_ids) == 7
    move_blocks(prefill, decode, there, reserved.block_ids)
    assert tuple(decode.memory.digests(reserved.block_ids)) == reserved.digests
    decode.land("r", 7)
    decode.finish_remote("r", 7)
    prefill.release("r")
    await listener.end_of(generate())
    await staged.until(lambda: staged.outputs[-1].load.staged_blocks == 0)
    assert listener.tokens == alone.tokens
    assert decode.info.kv_fingerprint == prefill.info.kv_fingerprint
    await decode.stop()
    await prefill.stop()
