"""The live fit of step times."""

import pytest

from armature.scheduling.pace import Pace


def test_nothing_is_claimed_before_it_is_measured():
    pace = Pace()
    assert (pace.decode_step_s, pace.prefill_tokens_per_s) == (0.0, 0.0)


def test_a_mixed_step_is_shared_between_prefill_and_decode():
    pace = Pace()
    for _ in range(50):
        pace.observe(num_decodes=8, prefill_tokens=0, elapsed_s=0.01)
        pace.observe(num_decodes=8, prefill_tokens=1000, elapsed_s=0.11)
    assert pace.decode_step_s == pytest.approx(0.01)
    assert pace.prefill_tokens_per_s == pytest.approx(10_000)


def test_large_chunks_weigh_more_than_small_ones():
    pace = Pace()
    for _ in range(50):
        pace.observe(num_decodes=0, prefill_tokens=2000, elapsed_s=0.2)
        pace.observe(num_decodes=0, prefill_tokens=64, elapsed_s=0.064)
    assert pace.prefill_tokens_per_s == pytest.approx(2064 / 0.264, rel=0.05)


def test_a_worker_that_has_computed_only_tails_of_prompts_claims_no_rate():
    pace = Pace()
    pace.observe(num_decodes=0, prefill_tokens=10, elapsed_s=0.03)
    pace.observe(num_decodes=4, prefill_tokens=16, elapsed_s=0.03)
    assert (pace.decode_step_s, pace.prefill_tokens_per_s) == (0.0, 0.0)


def test_the_fit_follows_a_change():
    pace = Pace()
    for elapsed_s in [0.01] * 50 + [0.03] * 50:
        pace.observe(num_decodes=1, prefill_tokens=0, elapsed_s=elapsed_s)
    assert pace.decode_step_s == pytest.approx(0.03, rel=0.01)


def test_a_mixed_step_faster_than_a_decode_step_gives_no_infinite_rate():
    pace = Pace()
    pace.observe(num_decodes=1, prefill_tokens=0, elapsed_s=1.0)
    pace.observe(num_decodes=1, prefill_tokens=100, elapsed_s=0.5)
    assert pace.prefill_tokens_per_s == pytest.approx(2000)
