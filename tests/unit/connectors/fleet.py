"""Workers that are records only, for connectors to be tried on."""

from collections.abc import Sequence

from armature.v1.common_pb2 import (
    MEMBER_STATE_DRAINING,
    MEMBER_STATE_READY,
    ROLE_AGGREGATED,
    ROLE_DECODE,
    ROLE_PREFILL,
    Member,
    Role,
    WorkerInfo,
)

A, P, D = ROLE_AGGREGATED, ROLE_PREFILL, ROLE_DECODE


class FakeWorkers:
    """What the cell knows of its workers."""

    def __init__(self) -> None:
        self.records: dict[str, Member] = {}
        self.load: dict[str, int] = {}

    def add(self, member_id: str, role: "Role.ValueType", address: str = "", *, drains: bool = False) -> None:
        state = MEMBER_STATE_DRAINING if drains else MEMBER_STATE_READY
        self.records[member_id] = Member(id=member_id, address=address, state=state, worker=WorkerInfo(role=role))

    def members(self) -> Sequence[Member]:
        return list(self.records.values())

    def in_flight(self, member_id: str) -> int:
        return self.load.get(member_id, 0)
