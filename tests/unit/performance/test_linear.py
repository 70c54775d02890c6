"""Step times as a sum of products: whole prompts, stretches, and what is refused."""

import numpy as np
import pytest

from armature.performance.linear import LinearModel
from armature.performance.step import StepShape

MODEL = LinearModel(0.01, 1e-4, 3e-8, 5e-5, 2e-9)


def test_a_stretch_takes_as_long_as_its_steps():
    steps = [MODEL.step_s(StepShape(7, 9000 + 7 * i)) for i in range(40)]
    assert MODEL.stretch_s(7, 9000, 40) == pytest.approx(sum(steps))
    assert MODEL.decode_step_s(7, 9000) == pytest.approx(steps[0])


@pytest.mark.parametrize(("new_tokens", "cached_tokens"), [(1, 0), (512, 0), (5000, 0), (5000, 70_000), (513, 16)])
def test_a_prompt_takes_as_long_as_its_chunks(new_tokens: int, cached_tokens: int):
    chunks_s, start = 0.0, cached_tokens
    while start < cached_tokens + new_tokens:
        count = min(512, cached_tokens + new_tokens - start)
        chunks_s += MODEL.step_s(StepShape(0, 0, count, count * (start + count / 2)))
        start += count
    assert MODEL.prefill_s(new_tokens, cached_tokens, 512) == pytest.approx(chunks_s)


def test_a_prompt_that_is_cached_takes_no_time():
    assert MODEL.prefill_s(0, 4096, 512) == 0.0


def test_many_prompts_are_told_at_once_as_one_by_one():
    new, cached, chunk = np.array([0.0, 100.0, 9000.0]), np.array([64.0, 0.0, 4096.0]), np.array([512.0, 64.0, 8192.0])
    one_by_one = [
        MODEL.prefill_s(*numbers) for numbers in zip(new.tolist(), cached.tolist(), chunk.tolist(), strict=True)
    ]
    assert MODEL.prefill_s(new, cached, chunk).tolist() == pytest.approx(one_by_one)


@pytest.mark.parametrize("wrong", [-1e-9, float("nan"), float("inf")])
def test_a_senseless_number_is_refused_by_name(wrong: float):
    with pytest.raises(ValueError, match=r"prefill_token_s is .*; it must be a finite number of at least 0"):
        LinearModel(0.01, 1e-4, 3e-8, wrong, 2e-9)
