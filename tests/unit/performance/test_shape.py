"""What a plan comes to, and the same engine on faster hardware."""

import pytest

from armature.blocks.hashing import BlockDigest
from armature.performance.faster import Faster
from armature.performance.presets import PRESETS
from armature.performance.shape import shape_of
from armature.performance.step import StepShape
from armature.scheduling.plan import Sequence, Slice, StepPlan
from armature.scheduling.request import Request


def sequence(tokens: int) -> Sequence:
    request = Request("r", [1] * tokens, tokens, 10, BlockDigest(bytes(16)))
    return Sequence(request, [1] * tokens, [])


def test_answers_attend_to_all_their_tokens_and_chunks_to_what_is_before_each() -> None:
    answers = (sequence(10), sequence(250))
    chunks = [Slice(sequence(100), 60, 40, True), Slice(sequence(5), 0, 5, True)]
    plan = StepPlan(tuple(chunks), decodes=answers, prefill_tokens=45)
    assert shape_of(plan) == StepShape(2, 260, 45, 40 * (60 + 20) + 5 * 2.5)


def test_faster_hardware_divides_every_time() -> None:
    model = PRESETS["qwen3-32b-tp2-h200"].performance
    faster, shape = Faster(model, 10), StepShape(3, 4000, 512, 1e6)
    assert faster.step_s(shape) == pytest.approx(model.step_s(shape) / 10)
    assert faster.stretch_s(3, 4000, 20) == pytest.approx(model.stretch_s(3, 4000, 20) / 10)
    with pytest.raises(ValueError, match="the factor is 0; it must be above 0"):
        Faster(model, 0)
