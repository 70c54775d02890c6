"""Filter, score, pick: a policy's choice among the ways that a snapshot offers. Pure; changes nothing."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from armature.index.tiers import LOWER_TIERS, Tier
from armature.routing.columns import Flags, Floats, Slots
from armature.routing.decision import NO_BLOCKS, Candidate
from armature.routing.filters import able
from armature.routing.forecast import ONBOARDED, Helpers, Ways, frontier, joined, local_ways, remote_ways
from armature.routing.pickers import Pick
from armature.routing.policy import Disaggregation, Policy
from armature.routing.snapshot import Snapshot

_PHASES = ("queue_s", "room_s", "onboard_s", "pull_s", "prefill_s", "transfer_s", "first_s")


class Judgement(NamedTuple):
    """What a policy makes of a snapshot: every way that was weighed, and the one that was picked."""

    snapshot: Snapshot
    policy: Policy
    ways: Ways
    terms: Mapping[str, Floats]
    """Way by way; they add up to the costs. Those that are nothing for every way are left out."""
    costs: Floats
    pick: Pick

    def __len__(self) -> int:
        return len(self.ways)

    @property
    def chosen(self) -> Candidate:
        return self.candidate(self.pick.way)

    def candidate(self, way: int) -> Candidate:
        """One of the ways, by its position."""
        ways, worker_ids = self.ways, self.snapshot.roster.worker_ids
        helper = -1 if ways.prefill is None else int(ways.prefill[way])
        source = -1 if ways.pull_slot is None else int(ways.pull_slot[way])
        ttft_s = 0.0
        for phase in _PHASES:
            values: Floats | None = getattr(ways, phase)
            if values is not None:
                ttft_s += values.item(way)
        held = ways.prefill_overlap
        return Candidate(
            decode_id=worker_ids[int(ways.decode[way])],
            prefill_id=worker_ids[helper] if helper >= 0 else "",
            pull_id=self.snapshot.source_ids[source] if source >= 0 else "",
            cost=self.costs.item(way),
            ttft_s=ttft_s,
            terms={name: values.item(way) for name, values in self.terms.items()},
            overlap_blocks=int(ways.overlap[way]),
            prefill_overlap_blocks=0 if held is None else int(held[way]),
            onboard_blocks=self._onboarded(way) if ways.onboard_s is not None else NO_BLOCKS,
        )

    def _onboarded(self, way: int) -> Mapping[Tier, int]:
        parts: dict[Tier, int] = {}
        for tier, name in zip(LOWER_TIERS, ONBOARDED, strict=True):
            blocks: Floats | None = getattr(self.ways, name)
            if blocks is not None and blocks[way]:
                parts[tier] = round(blocks.item(way))
        return parts

    def candidates(self) -> list[Candidate]:
        """All ways, those without a prefill worker first. Takes time in proportion to their number."""
        return [self.candidate(way) for way in range(len(self.ways))]


def judge(snapshot: Snapshot, policy: Policy) -> Judgement | None:
    """The policy's choice; None if it would have the request wait or be refused.

    Also for another policy than the one that has decided, to know what that would have done.
    """
    flags = _usable(snapshot, policy)
    (decoders,) = flags[: snapshot.roster.num_decoders].nonzero()
    if not len(decoders):
        return None
    ways = _ways(snapshot, policy, decoders, flags)
    terms, costs = _score(snapshot, policy, ways)
    return Judgement(snapshot, policy, ways, terms, costs, policy.picker.pick(snapshot, ways, costs))


def _usable(snapshot: Snapshot, policy: Policy) -> Flags:
    flags, decoders = able(snapshot), snapshot.roster.num_decoders
    for one in policy.filters.values():
        kept = one.keep(snapshot)
        if kept is None:
            continue
        left = flags & kept
        if not one.is_soft:
            flags = left
            continue
        for part in (slice(0, decoders), slice(decoders, None)):
            if np.count_nonzero(left[part]):
                flags[part] = left[part]
    return flags


def _ways(snapshot: Snapshot, policy: Policy, decoders: Slots, flags: Flags) -> Ways:
    forecast, mode = policy.forecast, policy.disaggregation
    if not snapshot.roster.groups or mode is Disaggregation.NEVER or snapshot.query.prefill_locally:
        return local_ways(snapshot, decoders, forecast)
    remote: list[Ways] = []
    for group in snapshot.roster.groups:
        slots = flags[group.first_prefiller : group.end_prefiller].nonzero()[0] + group.first_prefiller
        if not len(slots):
            continue
        helpers = Helpers(snapshot, slots, forecast)
        helpers.keep(frontier(snapshot, helpers) if policy.prefiller == "joint" else _own(snapshot, policy, slots))
        ways = remote_ways(snapshot, group, decoders, helpers, forecast)
        if ways is not None:
            remote.append(ways)
    if remote and (mode is Disaggregation.ALWAYS or policy.prefiller == "own"):
        served = np.unique(np.concatenate([ways.decode for ways in remote]))
        decoders = np.setdiff1d(decoders, served, assume_unique=True)
    local = [local_ways(snapshot, decoders, forecast)] if len(decoders) else []
    return joined([*local, *remote])


def _own(snapshot: Snapshot, policy: Policy, slots: Slots) -> Slots:
    """The prefill worker that the policy picks for itself, as if it were to decode too."""
    ways = local_ways(snapshot, slots, policy.forecast)
    _, costs = _score(snapshot, policy, ways)
    return np.array([policy.picker.pick(snapshot, ways, costs).way])


def _score(snapshot: Snapshot, policy: Policy, ways: Ways) -> tuple[dict[str, Floats], Floats]:
    sensitivity = snapshot.query.hints.latency_sensitivity
    terms: dict[str, Floats] = {}
    costs: Floats | None = None
    for name, scorer in policy.scorers.items():
        term = scorer.score(snapshot, ways)
        if term is None:
            continue
        if scorer.is_own and sensitivity != 1.0:
            term = sensitivity * term
        terms[name] = term
        costs = term if costs is None else costs + term
    return terms, np.zeros(len(ways)) if costs is None else costs
