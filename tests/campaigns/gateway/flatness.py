"""What may have grown when all clients are gone: next to nothing that was done before.

What comes first fills caches and raises the allocator's high-water mark, so the judgement is about repetition: the
second half of the cases, of the clients that leave, and a second round of silent readers must add nothing. Allowed is
what measuring is out by, far below what one of them holds while it is there (a call of gRPC 20 KiB and more, a request
with its prompt and body as much, an unread answer half a MiB). The whole campaign has a bound too, that of peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.campaigns.gateway.state import State

KIB_PER_CASE = 1.0
KIB_PER_LEAVER = 10.0
KIB_PER_SILENT_READER = 100.0
MAX_GROWTH_MIB = 24.0
"""From the first tenth of the cases to the end of everything."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """From one state to a later one."""

    what: str
    start: str
    end: str
    allowed_mib: float


def stretches(states: Mapping[str, State], *, cases: int, clients: int, silent_readers: int) -> tuple[Stretch, ...]:
    """Which parts of a campaign with these `states` must be flat."""
    again = [name for name in states if name.endswith(" again")]
    return (
        Stretch("half of the cases", "5 of 10", "10 of 10", cases / 2 * KIB_PER_CASE / 1024),
        Stretch("half of the leavers", "half have left", "all have left", clients / 2 * KIB_PER_LEAVER / 1024),
        *(Stretch(n, n.removesuffix(" again"), n, silent_readers * KIB_PER_SILENT_READER / 1024) for n in again),
        Stretch("all of it", "1 of 10", "end", MAX_GROWTH_MIB),
    )


def grown_mib(stretch: Stretch, states: Mapping[str, State]) -> float:
    return round(states[stretch.end].resident_mib - states[stretch.start].resident_mib, 1)


def judged(states: Mapping[str, State], parts: tuple[Stretch, ...]) -> dict[str, dict[str, float | bool]]:
    """For each stretch what it has grown by, what is allowed, and whether it is flat."""
    return {
        part.what: {
            "grown_mib": grown_mib(part, states),
            "allowed_mib": round(part.allowed_mib, 1),
            "is_flat": grown_mib(part, states) <= part.allowed_mib,
        }
        for part in parts
    }
