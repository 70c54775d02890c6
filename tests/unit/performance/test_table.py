"""Step times from tables: curves through points, and models made of them."""

import pytest

from armature.performance.step import StepShape
from armature.performance.table import Curve, TableModel

MODEL = TableModel(
    decode_s=Curve([1, 64, 256], [0.010, 0.012, 0.020]),
    context_token_s=Curve([1, 256], [3e-8, 4e-8]),
    prefill_s=Curve([1, 128, 8192], [0.010, 0.012, 0.4]),
    pair_s=Curve([1, 8192], [3e-9, 2e-9]),
)


def test_a_curve_goes_through_its_points_and_on_beyond_them():
    curve = Curve([1, 3, 4], [10, 20, 50])
    assert [curve.at(x) for x in (1, 2, 3, 3.5, 4, 5)] == [10, 15, 20, 35, 50, 80]
    assert curve.at(0) == 5
    assert curve.at(-10) == 0


@pytest.mark.parametrize(
    ("xs", "ys", "why"),
    [
        ([1], [1], "at least 2"),
        ([1, 2], [1], "as many of both"),
        ([1, 1], [1, 2], "each must be above"),
        ([1, 2], [1, float("nan")], "finite and at least 0"),
        ([1, 2], [1, -1], "finite and at least 0"),
    ],
)
def test_points_that_are_no_curve_are_refused(xs: list[float], ys: list[float], why: str):
    with pytest.raises(ValueError, match=why):
        Curve(xs, ys)


@pytest.mark.parametrize(("num_decodes", "context", "num_steps"), [(1, 10, 1), (7, 9000, 40), (200, 500_000, 333)])
def test_a_stretch_takes_as_long_as_its_steps(num_decodes: int, context: int, num_steps: int):
    steps = [MODEL.step_s(StepShape(num_decodes, context + i * num_decodes)) for i in range(num_steps)]
    assert MODEL.stretch_s(num_decodes, context, num_steps) == pytest.approx(sum(steps))


def test_a_mixed_step_computes_all_tokens_at_once_and_attends_to_each_ones_own():
    shape = StepShape(64, 100_000, 64, 1e6)
    together_s = 0.012 + MODEL.pair_s.at(64) * 1e6 + MODEL.context_token_s.at(64) * 100_000
    assert MODEL.step_s(shape) == pytest.approx(together_s)
