"""Whether a load differs from the one told last by so much that requests could be placed differently.

Counts of requests and of tokens to compute always do. Free blocks and speeds change a little with every step: of them
only what is beyond the tolerances below.
"""

from armature.performance.step import StepShape
from armature.scheduling.request import EngineLoad

FREE_TOLERANCE, TOTAL_TOLERANCE = 1 / 8, 1 / 64
"""Shares of the free blocks, which say who has room, and of all, which say how long contexts are."""
SPEED_TOLERANCE = 0.1

# Workers' step times are compared by what they make of one answer, of many with long contexts, and of prompts.
_SHAPES = (
    StepShape(1, 1024),
    StepShape(64, 64 * 4096),
    StepShape(0, 0, 512, 512 * 512 / 2),
    StepShape(0, 0, 8192, 8192 * 8192 / 2),
)


def is_news(load: EngineLoad, told: EngineLoad) -> bool:
    """Whether `load` should be told soon, `told` having been told."""
    return (
        load[:3] != told[:3]
        or _is_other_room(load, told)
        or differs(load.prefill_tokens_per_s, told.prefill_tokens_per_s)
        or differs(load.decode_step_s, told.decode_step_s)
        or _are_other_steps(load, told)
    )


def differs(speed: float, told: float) -> bool:
    """Whether a speed or a time is another one than was told; 0: it is not known."""
    return abs(speed - told) > SPEED_TOLERANCE * told


def _is_other_room(load: EngineLoad, told: EngineLoad) -> bool:
    tolerance = min(FREE_TOLERANCE * told.free_blocks, TOTAL_TOLERANCE * told.total_blocks)
    return abs(load.free_blocks - told.free_blocks) > tolerance or load.total_blocks != told.total_blocks


def _are_other_steps(load: EngineLoad, told: EngineLoad) -> bool:
    """Whether the fits predict other times for what the worker computes and may have to."""
    now, then = load.step_costs, told.step_costs
    if now is None or then is None or now is then:
        return now is not then
    return any(differs(now.step_s(shape), then.step_s(shape)) for shape in _SHAPES)
