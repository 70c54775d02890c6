"""Block tables as arrays, kept from step to step: a sequence's list of blocks grows once in `block_size` tokens."""

import numpy as np
from numpy.typing import NDArray

from armature.scheduling.plan import Sequence


class BlockTables:
    """The block ids of running sequences, by request."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[int], NDArray[np.int64]]] = {}

    def of(self, sequence: Sequence) -> NDArray[np.int64]:
        """The sequence's block ids `[blocks]`; read only."""
        request_id = sequence.request.request_id
        kept = self._kept.get(request_id)
        # The whole list is compared, since a preempted sequence comes back with other blocks.
        if kept is None or kept[0] != sequence.block_ids:
            kept = (list(sequence.block_ids), np.array(sequence.block_ids, dtype=np.int64))
            self._kept[request_id] = kept
        return kept[1]

    def forget(self, request_id: str) -> None:
        self._kept.pop(request_id, None)
