"""What computing a part of a prompt takes, in steps that are full anyway."""

from armature.performance.step import PerformanceModel, StepShape


def blocks_s(performance: PerformanceModel, block_size: int, first_block: int, num_blocks: int) -> float:
    """Seconds that blocks add to a prompt of which the first ones are there, as a larger step takes longer."""
    if not num_blocks:
        return 0.0
    tokens = num_blocks * block_size
    pairs = tokens * (first_block * block_size + tokens / 2)
    with_them = performance.step_s(StepShape(0, 0, block_size + tokens, pairs))
    return with_them - performance.step_s(StepShape(0, 0, block_size))
