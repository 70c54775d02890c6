"""Past decisions, each with all that it was taken on: they can be explained later, and judged by another policy.

A decision keeps the snapshot and not the costs: judging it again by the same policy gives the same ones. Bounded in
bytes; the oldest are forgotten first.
"""

from collections import deque
from dataclasses import dataclass, replace

from armature.routing.decision import Placed, Query, Rejected
from armature.routing.judge import Judgement, judge
from armature.routing.policy import Policy
from armature.routing.snapshot import Snapshot

# What a decision takes besides the arrays of its snapshot, about.
_OVERHEAD_BYTES = 1500


@dataclass(slots=True)
class Decision:
    """One answer that placement gave."""

    query: Query
    """Without its hashes, only as long."""
    decided_s: float
    policy: Policy
    snapshot: Snapshot | None = None
    """What was seen; None if the request was refused."""
    rejected: Rejected | None = None
    first_token_s: float | None = None
    """When the gateway told of the first token."""
    cached_tokens: int | None = None
    """How much of the prompt the worker then said it had found in its cache."""

    def judged_by(self, policy: Policy) -> Judgement | None:
        """What a policy makes of it, the one that decided or another; None: nobody could have been picked."""
        return None if self.snapshot is None else judge(self.snapshot, policy)

    @property
    def size_bytes(self) -> int:
        if self.snapshot is None:
            return _OVERHEAD_BYTES
        seen = self.snapshot
        columns = (
            seen.state, seen.queue_s, seen.depths, seen.overlap, seen.needed_blocks, *seen.lower_depths,
            seen.active_depths,
        )  # fmt: skip
        return _OVERHEAD_BYTES + sum([column.nbytes for column in columns if column is not None])


class History:
    """The last decisions, as many as fit into `max_bytes`, and at least one."""

    def __init__(self, policy: Policy, max_bytes: int) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._decisions: deque[Decision] = deque()
        self._by_request: dict[tuple[str, str], Decision] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._decisions)

    def add(self, query: Query, outcome: Placed | Rejected, now_s: float) -> None:
        """A decision has been made."""
        query = replace(query, hashes=range(len(query.hashes)))
        decision = Decision(query, now_s, self._policy)
        if isinstance(outcome, Placed):
            decision.snapshot = outcome.judgement.snapshot._replace(query=query)
        else:
            decision.rejected = outcome
        self._decisions.append(decision)
        self._by_request[query.owner, query.request_id] = decision
        self.size_bytes += decision.size_bytes
        while self.size_bytes > self._max_bytes and len(self._decisions) > 1:
            self._forget_oldest()

    def first_token(self, owner: str, request_id: str, now_s: float, cached_tokens: int | None = None) -> None:
        """A placed request has its first token. Unknown ones are ignored."""
        decision = self._by_request.get((owner, request_id))
        if decision is not None:
            decision.first_token_s, decision.cached_tokens = now_s, cached_tokens

    def of(self, request_id: str) -> list[Decision]:
        """Every decision on a request, oldest first: one for each attempt, which adds `-1`, `-2`, … to the id."""
        again = f"{request_id}-"
        return [
            decision
            for decision in self._decisions
            if (known := decision.query.request_id) == request_id or known.startswith(again)
        ]

    def latest(self, count: int) -> list[Decision]:
        """The last ones, oldest first."""
        return list(self._decisions)[-count:] if count > 0 else []

    def _forget_oldest(self) -> None:
        oldest = self._decisions.popleft()
        self.size_bytes -= oldest.size_bytes
        key = oldest.query.owner, oldest.query.request_id
        if self._by_request.get(key) is oldest:
            del self._by_request[key]
