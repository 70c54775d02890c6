"""What of a load is worth telling soon."""

from dataclasses import replace
from typing import Any

import pytest

from armature.performance.linear import LinearModel
from armature.scheduling.load_news import is_news
from armature.scheduling.request import EngineLoad

STEPS = LinearModel(fixed_s=1e-2, decode_s=2e-5, context_token_s=3e-8, prefill_token_s=5e-5, prefill_pair_s=2e-9)
TOLD = EngineLoad(
    running_seqs=3, waiting_seqs=1, waiting_prefill_tokens=500, free_blocks=800, total_blocks=6400,
    prefill_tokens_per_s=20_000.0, decode_step_s=0.01, step_costs=STEPS,
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"running_seqs": 4}, {"running_seqs": 2}, {"waiting_seqs": 0}, {"waiting_prefill_tokens": 499},
        {"free_blocks": 699}, {"free_blocks": 901}, {"total_blocks": 6401},
        {"prefill_tokens_per_s": 22_001.0}, {"prefill_tokens_per_s": 0.0}, {"decode_step_s": 0.0089},
        {"step_costs": None}, {"step_costs": replace(STEPS, fixed_s=1.2e-2)},
        {"step_costs": replace(STEPS, context_token_s=6e-8)}, {"step_costs": replace(STEPS, prefill_token_s=6e-5)},
        {"step_costs": replace(STEPS, prefill_pair_s=4e-9)},
    ],
)  # fmt: skip
def test_what_could_move_a_placement_is_news(change: dict[str, Any]) -> None:
    assert is_news(TOLD._replace(**change), TOLD)


@pytest.mark.parametrize(
    "change",
    [
        {}, {"free_blocks": 701}, {"free_blocks": 899}, {"prefill_tokens_per_s": 21_000.0}, {"decode_step_s": 0.0105},
        {"step_costs": replace(STEPS)}, {"step_costs": replace(STEPS, fixed_s=1.02e-2)},
        {"computed_prefill_tokens": 9}, {"cached_blocks": 7}, {"preemptions": 1}, {"staged_blocks": 1},
    ],
)  # fmt: skip
def test_what_every_step_changes_a_little_is_none(change: dict[str, Any]) -> None:
    assert not is_news(TOLD._replace(**change), TOLD)


@pytest.mark.parametrize("free_blocks", [0, 1, 7])
def test_where_little_room_is_left_every_block_is_news(free_blocks: int) -> None:
    told = TOLD._replace(free_blocks=free_blocks)
    assert is_news(told._replace(free_blocks=free_blocks + 1), told)


def test_what_is_measured_for_the_first_time_is_news() -> None:
    told = EngineLoad(total_blocks=64, free_blocks=64)
    assert is_news(told._replace(decode_step_s=0.01), told)
    assert is_news(told._replace(prefill_tokens_per_s=1.0), told)
    assert is_news(told._replace(step_costs=STEPS), told)
    assert not is_news(told, told)
