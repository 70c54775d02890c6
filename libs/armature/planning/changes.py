"""From what is wanted to what is changed: growth at once, shrinking with patience, roles before workers."""

from typing import NamedTuple

from armature.planning.decision import NO_FLIPS, Alternative, Flips, Reason
from armature.planning.fleet import Counts, WorkerKind
from armature.planning.policy import PlannerPolicy

_CLEAR_GAIN = 1.2
"""Times the strain on the role that lacks most: less is gained and lost again with every burst."""


class Wish(NamedTuple):
    """A change, or none, with its reason."""

    counts: Counts
    reason: Reason
    text: str
    flips: Flips = NO_FLIPS
    rejected: tuple[Alternative, ...] = ()


def balanced(now: Counts, least: Counts, settled: Counts, spare: Counts, hysteresis: float) -> Wish:
    """`least` is wanted now; `settled` and `spare` were the most wanted lately, over a long and a short time."""
    flips = _flips(now, least, spare)
    grown = Counts(*map(max, _turned(now, flips), least))
    if grown.total > now.total:
        return Wish(grown, Reason.DEMAND, f"{least} are needed, {now} are there", flips, _without(flips, now, least))
    kept = Counts(*(min(have, max(want, lately)) for have, want, lately in zip(grown, least, settled, strict=True)))
    surplus = grown.total - kept.total
    if surplus and surplus >= hysteresis * now.total:
        return Wish(kept, Reason.SURPLUS, f"{settled} were enough for long, {now} are there", flips)
    if flips.to_prefill or flips.to_decode:
        return Wish(grown, Reason.SPLIT, f"{least} are needed of {now}", flips, _without(flips, now, least))
    if least.total < now.total:
        return Wish(now, Reason.SETTLING, f"{least} are needed now, lately {settled}")
    return Wish(now, Reason.STEADY, f"{least} are needed, and are there")


def within(wish: Wish, now: Counts, policy: PlannerPolicy, kind: WorkerKind) -> Wish:
    """The same, within the limits; too few is better than none, so each needed role keeps a worker.

    Where all that is allowed is there already, roles change for a clear gain only, and nobody starts or leaves for it.
    """
    limits = policy.limits
    low, high = limits.min_workers, limits.most(kind)
    counts = wish.counts
    if counts.total > high:
        kept = _scaled(counts, high)
        if now.total == high and _strain(counts, now) <= _CLEAR_GAIN * _strain(counts, kept):
            kept = now
        flips = _flips(now, kept, kept)
        why_not = Alternative(counts, f"is beyond the {high} workers that limits allow")
        text = f"{wish.text}; the limits allow {high}"
        return Wish(kept, Reason.LIMIT, text, flips, (*wish.rejected, why_not))
    if counts.total < low:
        kept = _filled(counts, _turned(now, wish.flips), low, 0 if policy.mode == "aggregated" else 2)
        return wish._replace(counts=kept, text=f"{wish.text}; at least {low} stay")
    return wish


def _filled(counts: Counts, have: Counts, total: int, needed: int) -> Counts:
    """Somebody of the role that is needed, then those who are there, of roles with most to spare; then of that role."""
    filled = list(counts)
    filled[needed] = max(filled[needed], 1)
    while sum(filled) < total:
        spare = [have[i] - filled[i] for i in range(3)]
        most = max(range(3), key=lambda i: (spare[i], i))
        filled[most if spare[most] > 0 else needed] += 1
    return Counts(*filled)


def _turned(now: Counts, flips: Flips) -> Counts:
    """After changes of role."""
    change = flips.to_prefill - flips.to_decode
    return Counts(now.aggregated, now.prefill + change, now.decode - change)


def _flips(now: Counts, least: Counts, spare: Counts) -> Flips:
    """Workers that one role lacks and the other has not wanted for a while."""
    to_prefill = min(max(least.prefill - now.prefill, 0), max(now.decode - max(spare.decode, 1), 0))
    to_decode = min(max(least.decode - now.decode, 0), max(now.prefill - max(spare.prefill, 1), 0))
    return Flips(to_prefill, to_decode)


def _without(flips: Flips, now: Counts, least: Counts) -> tuple[Alternative, ...]:
    """What it would have taken without changes of role."""
    if not (flips.to_prefill or flips.to_decode):
        return ()
    return (Alternative(Counts(*map(max, now, least)), "starts workers while others have nothing to do"),)


def _strain(needed: Counts, there: Counts) -> float:
    """How many times as many would be needed, of the role that lacks most."""
    return max(need / have if have else float("inf") for need, have in zip(needed, there, strict=True) if need)


def _scaled(counts: Counts, total: int) -> Counts:
    """As many as are allowed, in the same proportion; largest remainders first."""
    shares = [count * total / counts.total for count in counts]
    kept = [max(int(share), 1 if share > 0 else 0) for share in shares]
    order = sorted(range(3), key=lambda i: (kept[i] - shares[i], i))
    for i in order:
        if sum(kept) < total and counts[i]:
            kept[i] += 1
    while sum(kept) > total:
        most = max(range(3), key=lambda i: (kept[i], -i))
        kept[most] -= 1
    return Counts(*kept)
