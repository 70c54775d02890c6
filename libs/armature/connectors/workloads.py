"""Which Deployment or StatefulSet has the workers of which role, as the planner is told."""

from collections.abc import Mapping
from typing import NamedTuple

from armature.v1.common_pb2 import ROLE_AGGREGATED, ROLE_DECODE, ROLE_PREFILL, Role

USUAL_WORKLOADS = "prefill=deployment/prefill-worker,decode=deployment/decode-worker"
_KINDS = ("deployment", "statefulset")
_NAMES: "Mapping[str, Role.ValueType]" = {
    "aggregated": ROLE_AGGREGATED,
    "prefill": ROLE_PREFILL,
    "decode": ROLE_DECODE,
}


class Workload(NamedTuple):
    """What has replicas."""

    kind: str
    """`deployment` or `statefulset`."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def workloads_of(text: str) -> "dict[Role.ValueType, Workload]":
    """By role, from `prefill=deployment/prefill-worker,...`.

    Raises:
        ValueError: it is not written so, or two roles have the same workload.
    """
    found: dict[Role.ValueType, Workload] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        role, _, place = word.partition("=")
        kind, _, name = place.partition("/")
        if role not in _NAMES or kind not in _KINDS or not name:
            raise ValueError(f"workloads: {word!r} is not such as {USUAL_WORKLOADS.split(',')[0]!r}")
        found[_NAMES[role]] = Workload(kind, name)
    if not found or len(set(found.values())) < len(found):
        raise ValueError(f"workloads is {text!r}; it must name a workload of its own for each role that there is")
    return found
