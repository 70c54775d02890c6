"""Whether reading blocks beats computing them, and how far."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from armature.index.tiers import Tier
from armature.offload.policy import TierShape


class Run(NamedTuple):
    """The part of a prompt that is worth reading."""

    num_blocks: int
    saved_s: Mapping[Tier, float]
    """Against computing, by where blocks are read."""


def worthwhile(tiers: Sequence[Tier], worth_s: Sequence[float], shapes: Mapping[Tier, TierShape]) -> Run:
    """The run from the first block that saves most; each block lies in a tier and takes some time to compute.

    Tiers are read one after the other: their latencies add up, as do their times.
    """
    best, best_s, total_s = 0, 0.0, 0.0
    saved_s: dict[Tier, float] = {}
    best_saved_s: dict[Tier, float] = {}
    for count, (tier, block_s) in enumerate(zip(tiers, worth_s, strict=False), 1):
        shape = shapes[tier]
        gain_s = block_s - shape.block_bytes / shape.read_bytes_per_s
        if tier not in saved_s:
            gain_s -= shape.read_latency_s
            saved_s[tier] = 0.0
        saved_s[tier] += gain_s
        total_s += gain_s
        if total_s > best_s:
            best, best_s, best_saved_s = count, total_s, dict(saved_s)
    return Run(best, best_saved_s)
