"""Prompts that are placed and not computed yet, by tenant: who stands before whom at a worker.

Workers serve tenants in turns. So what a tenant waits for there is not all that is to be computed, but what is its own,
and of each other tenant's no more than as much again. What a worker has to do besides is of unknown tenants and counts
in full.
"""

import numpy as np

from armature.routing import columns as at
from armature.routing.columns import Floats, Roster


class Unstarted:
    """Requests without a token yet, and seconds of their prompts where these are computed."""

    def __init__(self) -> None:
        self._requests: dict[str, dict[str, int]] = {}
        """By tenant and worker; likewise seconds, by worker and tenant. Nobody is listed with nothing."""
        self._seconds: dict[str, dict[str, float]] = {}
        self._sums: dict[str, float] = {}
        """Of those, by worker."""

    def requests(self) -> dict[str, int]:
        """By tenant."""
        return {tenant: sum(by_worker.values()) for tenant, by_worker in self._requests.items()}

    def has_others(self, tenant: str) -> bool:
        """Whether anybody but this tenant has any."""
        return len(self._requests) > (tenant in self._requests)

    def add(self, tenant: str, worker_id: str, seconds: float) -> None:
        """A prompt is to be computed by a worker."""
        own = self._requests.setdefault(tenant, {})
        own[worker_id] = own.get(worker_id, 0) + 1
        there = self._seconds.setdefault(worker_id, {})
        there[tenant] = there.get(tenant, 0.0) + seconds
        self._sums[worker_id] = self._sums.get(worker_id, 0.0) + seconds

    def remove(self, tenant: str, worker_id: str, seconds: float) -> None:
        """It is computed, or never will be."""
        own, there = self._requests[tenant], self._seconds[worker_id]
        own[worker_id] -= 1
        there[tenant] -= seconds
        self._sums[worker_id] -= seconds
        if not own[worker_id]:
            del own[worker_id], there[tenant]
        if not own:
            del self._requests[tenant]
        if not there:
            del self._seconds[worker_id], self._sums[worker_id]

    def queue_s(self, tenant: str, roster: Roster, state: Floats, all_s: Floats) -> Floats:
        """What a tenant's next prompt has before it on each worker, of `all_s` that there are to be computed.

        That is what is left of the step that is being computed, half of one in the mean, the tenant's own prompts, as
        much of each other tenant's, and what is nobody's.
        """
        known_s = np.zeros(len(all_s))
        for worker_id, sum_s in self._sums.items():
            slot = roster.slots.get(worker_id)
            if slot is not None:
                known_s[slot] = sum_s
        step_s = state[at.MAX_BATCH_TOKENS] * state[at.TOKEN_S] + state[at.CHUNK_S]
        before_s = step_s / 2 + np.maximum(all_s - known_s, 0.0)
        for worker_id in self._requests.get(tenant, ()):
            slot, there = roster.slots.get(worker_id), self._seconds[worker_id]
            if slot is not None:
                own_s = there[tenant]
                before_s[slot] += sum([min(seconds, own_s) for seconds in there.values()])
        return np.minimum(all_s, before_s)
