"""What is remembered of blocks whether or not a tier holds them: how often requests used them, and what they cost.

It also learns how likely a block is used again, from blocks like it: those as often used and as deep in their prompts.
A block that a tier was offered, and that a request asks for afterwards, was worth keeping; one that nobody asks for
until it is forgotten was not.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from armature.offload.sketch import FrequencySketch

_DEPTHS = 16
_USES = 4
_CLASSES = _DEPTHS * _USES
_FADE_TRIALS = 4096.0
"""Offers of a class after which its past weighs half, so that a change in traffic is noticed."""
_PRIOR_REUSED, _PRIOR_TRIALS = 1.0, 4.0
"""As if one of four blocks had come back, until it is known better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a request says of its blocks.

    Raises:
        ValueError: a number is out of its range.
    """

    tenant: str = ""
    priority: int = 0
    """Higher is kept longer, where the policy looks at it."""
    keep_s: float = 0.0
    """How long the blocks are worth keeping; 0: nothing was said."""

    def __post_init__(self) -> None:
        if not -10 <= self.priority <= 10:
            raise ValueError(f"priority is {self.priority}; it must be from -10 to 10")
        if not 0 <= self.keep_s < float("inf"):
            raise ValueError(f"keep_s is {self.keep_s}; it must be a finite number of at least 0")


NO_FACTS = Facts()


class Seen:
    """One block's past."""

    __slots__ = ("depth_class", "facts", "keep_until_s", "offered", "uses", "worth_s")

    def __init__(self) -> None:
        self.uses = 0
        """Requests that used it, as long as it was remembered."""
        self.worth_s = 0.0
        """Time that computing it takes; 0: unknown."""
        self.facts = NO_FACTS
        self.keep_until_s = 0.0
        self.depth_class = 0
        self.offered = -1
        """The class as which it was offered to a tier and not asked for since; -1: none."""


UNKNOWN = Seen()
"""Of a block that was never seen or is forgotten."""


class Ledger:
    """Remembers the `num_blocks` blocks that were seen last.

    Raises:
        ValueError: `num_blocks` is below 1.
    """

    def __init__(self, num_blocks: int) -> None:
        self.sketch = FrequencySketch(num_blocks)
        self._num_blocks = num_blocks
        self._seen: OrderedDict[bytes, Seen] = OrderedDict()
        self._trials = [0.0] * _CLASSES
        self._reused = [0.0] * _CLASSES

    def __len__(self) -> int:
        return len(self._seen)

    def see(self, digests: Sequence[bytes], worth_s: Sequence[float], facts: Facts, now_s: float) -> None:
        """A request asks for these blocks, its prompt from the start; `worth_s` is what computing each takes."""
        self.sketch.add(digests)
        seen, reused = self._seen, self._reused
        for depth, (digest, block_s) in enumerate(zip(digests, worth_s, strict=True)):
            one = seen.get(digest)
            if one is None:
                one = seen[digest] = Seen()
                one.depth_class = min((depth + 1).bit_length(), _DEPTHS) - 1
            else:
                seen.move_to_end(digest)
            one.uses += 1
            one.worth_s = block_s
            one.facts = facts
            if facts.keep_s:
                one.keep_until_s = max(one.keep_until_s, now_s + facts.keep_s)
            if one.offered >= 0:
                reused[one.offered] += 1.0
                one.offered = -1
        while len(self._seen) > self._num_blocks:
            self._seen.popitem(last=False)

    def get(self, digest: bytes) -> Seen:
        """What is remembered of a block."""
        return self._seen.get(digest, UNKNOWN)

    def offered(self, digests: Iterable[bytes]) -> None:
        """A tier had to decide about these."""
        for one in map(self._seen.get, digests):
            if one is not None and one.offered < 0:
                one.offered = index = _class_of(one)
                self._trials[index] += 1.0
                if self._trials[index] > _FADE_TRIALS:
                    self._trials[index] /= 2
                    self._reused[index] /= 2

    def reuse_probability(self, one: Seen) -> float:
        """How likely a block like this is used again after it was offered to a tier."""
        index = _class_of(one)
        return (self._reused[index] + _PRIOR_REUSED) / (self._trials[index] + _PRIOR_TRIALS)


def _class_of(one: Seen) -> int:
    uses = one.uses
    return (0 if uses < 1 else uses - 1 if uses < _USES else _USES - 1) + _USES * one.depth_class
