"""Counts workers by their records."""

from collections.abc import Iterable

from armature.planning.fleet import NOBODY, Counts, Fleet
from armature.v1.common_pb2 import (
    MEMBER_STATE_DRAINING,
    ROLE_AGGREGATED,
    ROLE_DECODE,
    ROLE_PREFILL,
    Member,
    Role,
)

ROLES: "tuple[Role.ValueType, ...]" = (ROLE_AGGREGATED, ROLE_PREFILL, ROLE_DECODE)
"""In the order of `Counts`."""


def counts_of(roles: "Iterable[Role.ValueType]") -> Counts:
    """How many there are of each role."""
    found = list(roles)
    return Counts(*(found.count(role) for role in ROLES))


def fleet_of(members: Iterable[Member], starting: Counts = NOBODY) -> Fleet:
    """Ready and draining as they have registered; `starting` is what the caller knows besides."""
    records = list(members)
    draining = [member for member in records if member.state == MEMBER_STATE_DRAINING]
    ready = counts_of(member.worker.role for member in records if member.state != MEMBER_STATE_DRAINING)
    return Fleet(ready, starting, len(draining))
