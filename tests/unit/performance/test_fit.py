"""The live fit: as good as the steps it has seen, not led astray by odd ones, and sane when steps tell little."""

from collections.abc import Iterator
from random import Random

import pytest

from armature.performance.faster import Faster
from armature.performance.fit import StepFit
from armature.performance.linear import LinearModel
from armature.performance.presets import PRESETS
from armature.performance.step import PerformanceModel, StepShape

H200 = PRESETS["qwen3-32b-tp2-h200"].performance
# Of other proportions than a GPU: little per step, much per token.
CPU = LinearModel(fixed_s=0.003, decode_s=5e-4, context_token_s=1e-7, prefill_token_s=3e-4, prefill_pair_s=1e-8)
PROMPTS = [(256, 0), (2048, 0), (8192, 0), (4096, 60_000)]


def prompt(tokens: int, cached_tokens: int = 0) -> StepShape:
    return StepShape(0, 0, tokens, tokens * (cached_tokens + tokens / 2))


def traffic(rng: Random, num_steps: int) -> Iterator[StepShape]:
    for _ in range(num_steps):
        num_decodes = rng.randint(0, 64)
        running = (num_decodes, sum(rng.randint(100, 20_000) for _ in range(num_decodes)))
        if rng.random() < 0.2 or not num_decodes:
            tokens, cached_tokens = rng.choice([100, 512, 2048, 8192]), rng.choice([0, 0, 1000, 30_000])
            yield StepShape(*running, *prompt(tokens, cached_tokens)[2:])
        else:
            yield StepShape(*running)


def fitted(model: PerformanceModel, num_steps: int = 2000, *, pauses: float = 0.0) -> StepFit:
    """A fit to steps that scatter by 5 %, some of which take 30 times as long."""
    fit, rng = StepFit(), Random(1)
    for shape in traffic(rng, num_steps):
        took_s = model.step_s(shape) * rng.lognormvariate(0.0, 0.05)
        fit.observe(shape, took_s * 30 if rng.random() < pauses else took_s)
    return fit


def errors(fit: StepFit, model: PerformanceModel) -> list[float]:
    assert fit.model is not None
    return sorted(abs(fit.model.step_s(shape) / model.step_s(shape) - 1) for shape in traffic(Random(2), 500))


@pytest.mark.parametrize("model", [H200, CPU], ids=["roofline", "linear"])
@pytest.mark.parametrize("pauses", [0.0, 0.02])
def test_steps_and_prompts_are_foretold_from_noisy_steps(model: PerformanceModel, pauses: float):
    fit = fitted(model, pauses=pauses)
    found = errors(fit, model)
    assert found[len(found) // 2] < 0.03
    assert found[int(0.99 * len(found))] < 0.15
    assert fit.model is not None
    for tokens, cached_tokens in PROMPTS:
        took_s = model.step_s(prompt(tokens, cached_tokens))
        assert fit.model.prefill_s(tokens, cached_tokens, 8192) == pytest.approx(took_s, rel=0.12)


def test_nothing_is_claimed_before_it_is_measured():
    fit = StepFit()
    assert (fit.model, fit.decode_step_s, fit.prefill_tokens_per_s) == (None, 0.0, 0.0)
    fit.observe(StepShape(4, 4000), 0.012)
    assert (fit.model, fit.prefill_tokens_per_s) == (None, 0.0)
    assert fit.decode_step_s == pytest.approx(0.012)
    # Tails of prompts take as long as a single token, and say nothing of longer ones.
    fit.observe(StepShape(4, 4000, 16, 128.0), 0.012)
    assert fit.model is None
    fit.observe(prompt(2048), 0.2)
    assert fit.model is None, "the first steps say more of a start than of prompts"
    for _ in range(8):
        fit.observe(prompt(2048), 0.2)
    assert fit.model is not None
    assert fit.prefill_tokens_per_s == pytest.approx(2048 / 0.2, rel=0.12)


def test_steps_that_are_all_alike_keep_usual_proportions():
    fit = StepFit()
    for _ in range(500):
        fit.observe(prompt(2048), 1.0)
    model = fit.model
    assert model is not None
    assert model.step_s(prompt(2048)) == pytest.approx(1.0, rel=0.01)
    assert 1.5 < model.step_s(prompt(4096)) < 2.5
    assert 0.3 < model.step_s(prompt(512)) < 0.4
    assert model.decode_step_s(1, 1000) < 0.2


def test_a_long_run_of_answers_does_not_wash_out_what_prompts_cost():
    fit = fitted(H200)
    rng = Random(3)
    for _ in range(5000):
        shape = StepShape(8, 8 * rng.randint(1000, 2000))
        fit.observe(shape, H200.step_s(shape))
    assert fit.model is not None
    for tokens, cached_tokens in PROMPTS:
        took_s = H200.step_s(prompt(tokens, cached_tokens))
        assert fit.model.prefill_s(tokens, cached_tokens, 8192) == pytest.approx(took_s, rel=0.12)


def test_a_first_step_that_compiles_is_forgiven():
    fit = StepFit()
    fit.observe(prompt(1024), 60.0)
    for _ in range(7):
        fit.observe(prompt(1024), 0.1)
    assert fit.model is not None
    assert fit.model.step_s(prompt(1024)) == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize("factor", [0.2, 0.5, 3.0])
def test_an_engine_that_changes_its_speed_is_followed(factor: float):
    fit, changed = fitted(H200), Faster(H200, factor)
    for shape in traffic(Random(4), 2000):
        fit.observe(shape, changed.step_s(shape))
    found = errors(fit, changed)
    assert found[len(found) // 2] < 0.05


def test_no_cost_is_ever_negative_and_prompts_are_never_free():
    rng = Random(5)
    for _ in range(50):
        fit = StepFit()
        for shape in traffic(rng, rng.randint(1, 60)):
            fit.observe(shape, rng.expovariate(10.0))
        if fit.model is not None:
            # The model itself refuses negative numbers.
            assert fit.model.prefill_token_s > 0


def test_a_stretch_counts_as_its_steps():
    shape, one_by_one, at_once = StepShape(8, 9000), StepFit(), StepFit()
    for fit in (one_by_one, at_once):
        fit.observe(prompt(2048), 0.1)
    for _ in range(32):
        one_by_one.observe(shape, 0.013)
    at_once.observe(shape, 0.013, num_steps=32)
    assert at_once.decode_step_s == pytest.approx(one_by_one.decode_step_s)


def test_steps_that_take_no_time_are_passed_over():
    fit = StepFit()
    fit.observe(prompt(2048), 0.0)
    assert fit.model is None
