"""Replays the prompts of a trace on the memory of a site: its devices, and the tiers below them under one policy.

Nothing waits here: a prompt is there at once, and what it saves is reckoned against computing it alone. So it takes
seconds where a simulation of workers takes minutes, and shows what a policy does to memory and to nothing else. All
devices together are one pool, as if every request went where its prefix is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from armature.blocks.events import KvEventKind
from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.blocks.pool import BlockPool
from armature.index.tiers import Tier
from armature.offload.ledger import Facts
from armature.offload.policy import OffloadPolicy, TierShape
from armature.offload.reading import worthwhile
from armature.offload.store import TierStore
from armature.performance.prompts import blocks_s
from armature.performance.step import PerformanceModel
from armature.sim.trace import Trace

_PROGRESS_STEP = 50
_BATCH = 16
"""Blocks that leave a device at a time, if so many fit into what the first tier keeps free."""


@dataclass(frozen=True, slots=True)
class SiteShape:
    """The memory of a site.

    Raises:
        ValueError: there are no devices.
    """

    device_blocks: int
    tiers: Mapping[Tier, TierShape]
    performance: PerformanceModel

    def __post_init__(self) -> None:
        if self.device_blocks < 1:
            raise ValueError(f"device_blocks is {self.device_blocks}; it must be at least 1")


@dataclass(slots=True)
class TierOutcome:
    """What came of one tier."""

    hit_blocks: int = 0
    """Read instead of computed."""
    written_bytes: int = 0
    hit_bytes: int = 0
    refused_blocks: int = 0
    """By its admission, as often as they were offered."""
    saved_s: float = 0.0
    """Time to first token, summed over all requests."""

    @property
    def written_per_hit(self) -> float:
        """Bytes written for each byte that was read; infinite if nothing was."""
        return self.written_bytes / self.hit_bytes if self.hit_bytes else float("inf") if self.written_bytes else 0.0


@dataclass(slots=True)
class TierReplay:
    """What came of a trace."""

    requests: int = 0
    prompt_blocks: int = 0
    """Whole blocks of prompts that could be found: all but the one with the last token."""
    device_hits: int = 0
    slow_blocks: int = 0
    """That a tier held and that were computed all the same, since reading takes longer."""
    compute_s: float = 0.0
    """What is not on a device would take, without lower tiers."""
    tiers: dict[Tier, TierOutcome] = field(default_factory=dict[Tier, TierOutcome])

    @property
    def hit_blocks(self) -> int:
        """On devices and below."""
        return self.device_hits + sum([one.hit_blocks for one in self.tiers.values()])

    @property
    def saved_s(self) -> float:
        return sum([one.saved_s for one in self.tiers.values()])


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request as memory sees it."""

    arrival_s: float
    digests: Sequence[BlockDigest]
    """Of its whole blocks."""
    num_useful: int
    """Of them, from the first, that need not be computed if they are there."""
    facts: Facts


def prompts_of(trace: Trace) -> list[Prompt]:
    """The prompts of a trace, whose blocks are named by all contents up to their end."""
    hasher = BlockHasher(b"", 1)
    root = hasher.root("")
    made: list[Prompt] = []
    for one in trace.requests:
        contents = one.contents[: one.prompt_tokens // trace.block_size]
        useful = (one.prompt_tokens - 1) // trace.block_size
        facts = Facts(tenant=one.tenant, priority=min(max(one.priority, -10), 10))
        made.append(Prompt(one.arrival_s, hasher.extend(root, contents), useful, facts))
    return made


class TierReplayer:
    """One policy on one site; use it once: `run`."""

    def __init__(self, site: SiteShape, policy: OffloadPolicy, block_size: int) -> None:
        self._site = site
        self._block_size = block_size
        self._pool = BlockPool(site.device_blocks + 1)
        self._store = TierStore(policy, site.tiers)
        self._worth_s: list[float] = []
        self._replay = TierReplay(tiers={tier: TierOutcome() for tier in self._store.spaces})

    def run(self, prompts: Sequence[Prompt], on_progress: Callable[[int], None] | None = None) -> TierReplay:
        """All prompts, in the order in which they arrive; `on_progress` hears how many were served, now and then."""
        for number, prompt in enumerate(prompts):
            if on_progress and not number % _PROGRESS_STEP:
                on_progress(number)
            self._serve(prompt)
        for tier, outcome in self._replay.tiers.items():
            block_bytes, counts = self._site.tiers[tier].block_bytes, self._store.counts[tier]
            outcome.written_bytes = counts.stored * block_bytes
            outcome.hit_bytes = outcome.hit_blocks * block_bytes
            outcome.refused_blocks = counts.refused
        return self._replay

    def _serve(self, prompt: Prompt) -> None:
        store, replay, now_s = self._store, self._replay, prompt.arrival_s
        store.step(now_s)
        useful = prompt.digests[: prompt.num_useful]
        worth_s = self._worth_of(len(useful))
        store.see(useful, worth_s, prompt.facts, now_s)
        found = self._pool.match(useful)
        replay.requests += 1
        replay.prompt_blocks += len(useful)
        replay.device_hits += len(found)
        replay.compute_s += sum(worth_s[len(found) :])
        self._onboard(useful[len(found) :], worth_s[len(found) :], now_s)
        self._fill(prompt, found)
        self._offload(now_s)

    def _onboard(self, digests: Sequence[BlockDigest], worth_s: Sequence[float], now_s: float) -> None:
        tiers = self._store.find(digests)
        run = worthwhile(tiers, worth_s, self._site.tiers)
        self._replay.slow_blocks += len(tiers) - run.num_blocks
        if not run.num_blocks:
            return
        for tier in tiers[: run.num_blocks]:
            self._replay.tiers[tier].hit_blocks += 1
        for tier, saved_s in run.saved_s.items():
            self._replay.tiers[tier].saved_s += saved_s
        taken = digests[: run.num_blocks]
        lease = self._store.readers.lease(taken, now_s, 1.0)
        self._copy(now_s)
        self._store.readers.release(lease.lease_id)
        self._store.onboarded(taken)

    def _fill(self, prompt: Prompt, found: list[int]) -> None:
        """The device has computed or read the rest of the prompt."""
        fresh = self._pool.allocate(len(prompt.digests) - len(found)) or []
        for block_id, digest in zip(fresh, prompt.digests[len(found) :], strict=False):
            self._pool.commit(block_id, digest)
        self._pool.release(found + fresh)

    def _offload(self, now_s: float) -> None:
        """What the device has evicted for it goes down."""
        removed = [event.digests for event in self._pool.take_events() if event.kind is KvEventKind.REMOVED]
        digests = list(chain.from_iterable(removed))
        batch = min(_BATCH, next(iter(self._store.spaces.values())).headroom_blocks)
        for first in range(0, len(digests), batch):
            reserved = self._store.reserve(digests[first : first + batch], now_s)
            self._store.commit(reserved.reservation_id, now_s)
            self._copy(now_s)

    def _copy(self, now_s: float) -> None:
        while jobs := self._store.take_copies(now_s, _BATCH):
            for job in jobs:
                self._store.finish_copy(job.job_id, now_s)

    def _worth_of(self, num_blocks: int) -> list[float]:
        """What computing each of a prompt's first blocks takes."""
        known = self._worth_s
        model, block_size = self._site.performance, self._block_size
        known += [blocks_s(model, block_size, i, 1) for i in range(len(known), num_blocks)]
        return known[:num_blocks]
