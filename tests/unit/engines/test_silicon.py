"""Presets from measured tables: as the tables say, and what is said when they can't say."""

import importlib.util
from typing import Any

import pytest

from armature.engines.silicon import SiliconError, gpus_per_domain, silicon_model
from armature.performance.presets import PRESETS
from armature.performance.step import StepShape

IS_INSTALLED = importlib.util.find_spec("aiconfigurator_core") is not None
needs_tables = pytest.mark.skipif(not IS_INSTALLED, reason="the extra `silicon` (some 400 MB) is not installed")
QWEN: dict[str, Any] = {"model": "Qwen/Qwen3-32B", "system": "h200_sxm", "backend": "trtllm", "tp": 2}


@pytest.mark.skipif(IS_INSTALLED, reason="the tables are installed")
def test_without_the_tables_the_error_names_the_extra():
    with pytest.raises(SiliconError, match=r"pip install armature\[silicon\]"):
        silicon_model(**QWEN)


@needs_tables
def test_the_preset_that_was_fitted_by_hand_agrees_with_the_tables():
    by_hand, preset = PRESETS["qwen3-32b-tp2-h200"], silicon_model(**QWEN)
    assert preset.token_bytes == by_hand.token_bytes
    assert preset.kv_tokens == pytest.approx(by_hand.kv_tokens, rel=0.1)
    shapes = [StepShape(0, 0, new, new * (cached + new / 2)) for new in (256, 1024, 8192) for cached in (0, 30_000)]
    shapes += [StepShape(batch, batch * context) for batch in (1, 16, 64) for context in (1000, 8000)]
    for shape in shapes:
        assert preset.performance.step_s(shape) == pytest.approx(by_hand.performance.step_s(shape), rel=0.1)


@needs_tables
def test_experts_are_split_as_asked():
    preset = silicon_model(model="Qwen/Qwen3-235B-A22B", system="h200_sxm", backend="trtllm", tp=8, ep=8)
    one, many = (preset.performance.step_s(StepShape(batch, batch * 1000)) for batch in (1, 64))
    assert 1.5 * one < many


@needs_tables
def test_lanes_of_stages_hold_more_and_step_as_slowly_as_all_stages():
    whole, staged = silicon_model(**QWEN), silicon_model(**QWEN | {"pp": 2})
    assert staged.kv_tokens > whole.kv_tokens
    shape = StepShape(16, 16_000)
    assert staged.performance.step_s(shape) == pytest.approx(whole.performance.step_s(shape), rel=0.1)


@needs_tables
def test_a_rack_behind_one_switch_is_one_domain():
    assert (gpus_per_domain("gb200"), gpus_per_domain("h100_sxm")) == (72, 8)


@needs_tables
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"model": "nobody/nothing"}, r"there is no model 'nobody/nothing'.*there are .*Qwen/Qwen3-32B"),
        ({"system": "h900"}, r"there is no system 'h900'; there are .*h200_sxm"),
        ({"backend": "tgi"}, r"h200_sxm has no backend 'tgi'; it has sglang, trtllm, vllm"),
        ({"tp": 3}, r"no tables for Qwen/Qwen3-32B on h200_sxm with trtllm, tp=3 .*divisible"),
        ({"ep": 2}, r"ep is 2, but Qwen/Qwen3-32B has no experts"),
        ({"dp": 2}, r"dp is 2, but Qwen/Qwen3-32B has no experts"),
        ({"tp": 0}, r"tp is 0; it must be at least 1"),
        ({"system": "l40s", "tp": 1}, r"no KV budget"),
    ],
)
def test_what_the_tables_lack_is_said_with_what_they_have(wrong: dict[str, Any], why: str):
    with pytest.raises(SiliconError, match=why):
        silicon_model(**QWEN | wrong)
