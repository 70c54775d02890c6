"""How long to wait for blocks that are read instead of computed. Pure.

Two bounds, both what computing would take: all together are waited for no longer than all would take to compute, and
after each that has come the wait for the rest is no longer than the rest would take. So a source that stalls costs at
most as much time again as was to be saved, and one that stalls near the end costs little.
"""

from armature.performance.linear import LinearModel


class Patience:
    """One prompt's.

    Args:
        costs: of the worker's steps; None: not known yet, then `unknown_s` is waited.
        first_block: index in the prompt of the first block that is read.
        num_blocks: that are read.
    """

    def __init__(
        self, costs: LinearModel | None, *, block_size: int, first_block: int, num_blocks: int, unknown_s: float
    ) -> None:
        self._costs = costs
        self._block_size = block_size
        self._first_block = first_block
        self._num_blocks = num_blocks
        self._unknown_s = unknown_s
        self._began_s: float | None = None

    def deadline_s(self, landed_blocks: int, now_s: float) -> float:
        """Until when to wait for the next block, now that so many have come. The clock starts with the first call."""
        if self._began_s is None:
            self._began_s = now_s
        return min(self._began_s + self._compute_s(0), now_s + self._compute_s(landed_blocks))

    def promised(self, num_blocks: int) -> None:
        """The source has no more than the first so many: only for these it is worth waiting."""
        self._num_blocks = min(self._num_blocks, num_blocks)

    def _compute_s(self, landed_blocks: int) -> float:
        """Computing what has not come, as one more part of the step that computes the rest of the prompt anyway."""
        if self._costs is None:
            return self._unknown_s
        tokens = max(self._num_blocks - landed_blocks, 0) * self._block_size
        before = (self._first_block + landed_blocks) * self._block_size
        return self._costs.fixed_s + tokens * (
            self._costs.prefill_token_s + self._costs.prefill_pair_s * (before + tokens / 2)
        )
