"""Copies between tiers, down and up: which are wanted, which are under way, and what a tier still may be written.

What is wanted waits in a bounded line for each tier, the oldest of which is given up when it is full. A copy starts
when somebody asks for work, so whoever does it sets the pace.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload.budget import WriteBudget
from armature.offload.copies import Copy, Place
from armature.offload.space import TierSpace

_INFINITE = float("inf")


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Bytes to be copied: read `source`, write `target`, then tell the store."""

    job_id: int
    digest: bytes
    source: Place
    target: Place
    tenant: str
    """Whose quota the copy counts against."""


class Cascade:
    """At most `max_waiting` blocks wait for each tier."""

    def __init__(self, spaces: Mapping[Tier, TierSpace], max_waiting: int) -> None:
        self._spaces = spaces
        self._max_waiting = max_waiting
        self._waiting = {tier: OrderedDict[bytes, str]() for tier in spaces}
        self._budgets = {tier: _budget_of(space) for tier, space in spaces.items()}
        self._running: dict[int, tuple[Copy, Copy, Tier, Tier]] = {}
        self._last_id = 0
        self.given_up = dict.fromkeys(spaces, 0)
        """Copies to each tier that were wanted and never started: the line was full, or there was no room."""

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_wanting(self) -> bool:
        """Whether any copy waits to be started."""
        return any(self._waiting.values())

    def num_waiting(self, tier: Tier) -> int:
        return len(self._waiting[tier])

    def want(self, digest: bytes, tier: Tier, tenant: str, *, is_urgent: bool = False) -> None:
        """Have a block copied to a tier; urgent ones go first."""
        line = self._waiting[tier]
        line[digest] = tenant
        if is_urgent:
            line.move_to_end(digest, last=False)
        if len(line) > self._max_waiting:
            line.popitem(last=is_urgent)
            self.given_up[tier] += 1

    def is_wanted(self, digest: bytes, tier: Tier) -> bool:
        return digest in self._waiting[tier]

    def next(self, now_s: float) -> tuple[Tier, bytes, str] | None:
        """The next copy that can be started and that the budget allows, which counts as spent; up before down.

        A tier that is full of blocks on their way down gets nothing while they may still get there.
        """
        full: list[Tier] = []
        for tier, space in self._spaces.items():
            if not space.free_blocks and space.leaving_blocks:
                full.append(tier)
            elif (found := self._next_to(tier, now_s)) is not None:
                return found
        for tier in full if not self._running else ():
            if (found := self._next_to(tier, now_s)) is not None:
                return found
        return None

    def _next_to(self, tier: Tier, now_s: float) -> tuple[Tier, bytes, str] | None:
        line, space = self._waiting[tier], self._spaces[tier]
        while line:
            digest, tenant = next(iter(line.items()))
            if space.get(digest) is not None or self.source(digest, tier) is None:
                del line[digest]
            elif not space.can_take(tenant):
                del line[digest]
                self.given_up[tier] += 1
            elif self._budgets[tier].spend(space.shape.block_bytes, now_s):
                del line[digest]
                return tier, digest, tenant
            else:
                break
        return None

    def source(self, digest: bytes, target: Tier) -> tuple[TierSpace, Copy] | None:
        """The fastest tier that a block can be copied from."""
        for tier in LOWER_TIERS:
            space = self._spaces.get(tier)
            if space is not None and tier is not target and (copy := space.ready(digest)) is not None:
                return space, copy
        return None

    def start(self, target: TierSpace, copy: Copy) -> CopyJob:
        """The target has room for it: what is to be done."""
        found = self.source(copy.digest, target.tier)
        assert found is not None, "the source has gone since it was found"
        space, source = found
        source.readers += 1
        self._last_id += 1
        self._running[self._last_id] = (source, copy, space.tier, target.tier)
        return CopyJob(self._last_id, copy.digest, space.place(source), target.place(copy), copy.tenant)

    def finish(self, job_id: int) -> tuple[TierSpace, TierSpace, Copy] | None:
        """A copy has ended, well or not: from where, to where, and the copy. None: there is no such job."""
        job = self._running.pop(job_id, None)
        if job is None:
            return None
        source, copy, source_tier, target_tier = job
        source.readers -= 1
        self._spaces[source_tier].settle(source)
        return self._spaces[source_tier], self._spaces[target_tier], copy

    def held(self) -> Counter[Copy]:
        """What running copies read, and how often."""
        return Counter([source for source, _, _, _ in self._running.values()])

    def is_target(self, copy: Copy) -> bool:
        """Whether a running copy writes this."""
        return any(target is copy for _, target, _, _ in self._running.values())


def _budget_of(space: TierSpace) -> WriteBudget:
    bytes_per_s = space.policy.write_bytes_per_s or _INFINITE
    return WriteBudget(bytes_per_s, bytes_per_s * space.policy.burst_s)
