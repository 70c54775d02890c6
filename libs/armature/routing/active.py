"""Distinct blocks of requests in flight, by worker: what some published costs count as load."""

from collections import Counter
from collections.abc import Sequence

from armature.index.descent import Ends
from armature.index.prefix_index import PrefixIndex


class ActiveBlocks:
    """Counts every block once, however many requests on a worker share it."""

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._counts: dict[str, Counter[int]] = {}
        self._tails: Counter[str] = Counter()
        """Partial blocks at the ends of prompts, which nobody shares."""

    def open(self, worker_id: str, hashes: Sequence[int], *, has_tail: bool) -> int:
        """A request has come; how many blocks are active on its worker now."""
        counts = self._counts.setdefault(worker_id, Counter())
        new = [block for block in hashes if block not in counts]
        counts.update(hashes)
        self._index.store(worker_id, new)
        self._tails[worker_id] += has_tail
        return len(counts) + self._tails[worker_id]

    def close(self, worker_id: str, hashes: Sequence[int], *, has_tail: bool) -> int:
        """A request has left; how many blocks are active on its worker now."""
        counts = self._counts.get(worker_id)
        if counts is None:
            return 0
        counts.subtract(hashes)
        gone = [block for block in hashes if not counts[block]]
        for block in gone:
            del counts[block]
        self._index.remove(worker_id, gone)
        self._tails[worker_id] -= has_tail
        return len(counts) + self._tails[worker_id]

    def drop(self, worker_id: str) -> None:
        """A worker is gone."""
        self._counts.pop(worker_id, None)
        self._tails.pop(worker_id, None)
        self._index.drop(worker_id)

    @property
    def slots(self) -> tuple[str, ...]:
        """Worker by the number of its bit in masks; the same tuple until that changes."""
        return self._index.slots

    def match(self, hashes: Sequence[int]) -> Ends:
        """How many blocks of a prompt are active on each worker, as masks by depth.

        A prompt is entered whole, so those of another that are active are its first ones.
        """
        return self._index.reach_masks(hashes).device
