"""Step times: a stretch is the sum of its steps, and nonsense is refused."""

import pytest

from armature.performance.presets import PRESETS
from armature.performance.roofline import RooflineModel
from armature.performance.step import StepShape
from armature.sim.summary import spread

MODEL = PRESETS["qwen3-32b-tp2-h200"].performance


@pytest.mark.parametrize(("num_decodes", "context", "num_steps"), [(1, 10, 1), (7, 9000, 40), (200, 500_000, 333)])
def test_a_stretch_takes_as_long_as_its_steps(num_decodes: int, context: int, num_steps: int) -> None:
    steps = [MODEL.step_s(StepShape(num_decodes, context + i * num_decodes)) for i in range(num_steps)]
    assert MODEL.stretch_s(num_decodes, context, num_steps) == pytest.approx(sum(steps))


# Milliseconds, from aiconfigurator-core 0.12.0: new tokens behind cached ones, and batch and context of a decode step.
@pytest.mark.parametrize(
    ("tokens", "cached", "took_ms"), [(1024, 0, 55.9), (8192, 0, 459.5), (8192, 65536, 1547.1), (2048, 16384, 175.3)]
)
def test_the_preset_prefills_as_fast_as_was_measured(tokens: int, cached: int, took_ms: float) -> None:
    shape = StepShape(0, 0, tokens, tokens * (cached + tokens / 2))
    assert 1000 * MODEL.step_s(shape) == pytest.approx(took_ms, rel=0.05)


@pytest.mark.parametrize(("batch", "context", "took_ms"), [(1, 8192, 11.04), (16, 16384, 19.69), (64, 8192, 27.68)])
def test_the_preset_decodes_as_fast_as_was_measured(batch: int, context: int, took_ms: float) -> None:
    assert 1000 * MODEL.step_s(StepShape(batch, batch * context)) == pytest.approx(took_ms, rel=0.05)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_model_with_a_senseless_number_is_refused_by_name(wrong: float) -> None:
    with pytest.raises(ValueError, match="pair_s"):
        RooflineModel(
            memory_s=1.0, memory_seq_s=0.0, compute_s=0.0, compute_token_s=0.0, pair_s=wrong, context_token_s=0.0
        )


def test_quantiles_are_values_that_occurred() -> None:
    found = spread([float(i) for i in range(100, 0, -1)])
    assert (found.mean, found.p50, found.p90, found.p99, found.most) == (50.5, 50.0, 90.0, 99.0, 100.0)
    assert spread([]).mean == 0.0
