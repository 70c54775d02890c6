"""Prompts that are placed and not computed yet, by tenant: who stands before whom at a worker.

Workers serve tenants in turns. So what a tenant waits for there is not all that is to be computed, but what is its own,
and of each other tenant's no more than as much again. What a worker has to do besides is of unknown tenants and counts
in full.
"""

import numpy as np

from armature.routing import columns as at
from armature.routing.columns import Floats, Roster, Slots

_FIRST_ROWS = 64
_NOBODYS = 0
"""The row of workers that have never had any; always zero."""


class Unstarted:
    """Requests without a token yet, and seconds of their prompts where these are computed.

    What decisions read is kept in tables as prompts come and go: a tenant that floods a large cell has some everywhere.
    """

    def __init__(self) -> None:
        self._requests: dict[str, dict[str, int]] = {}
        """By tenant and worker; likewise seconds, by worker and tenant. Nobody is listed with nothing."""
        self._seconds: dict[str, dict[str, float]] = {}
        self._rows: dict[str, int] = {}
        """By worker."""
        self._sums: Floats = np.zeros(_FIRST_ROWS)
        """Of seconds, by row."""
        self._turns: dict[str, Floats] = {}
        """By tenant, its own seconds and as much of each other tenant's, by row."""
        self._seats: tuple[Roster, Slots] | None = None
        """The rows of the workers of the roster that was last asked about."""

    def requests(self) -> dict[str, int]:
        """By tenant."""
        return {tenant: sum(by_worker.values()) for tenant, by_worker in self._requests.items()}

    def has_others(self, tenant: str) -> bool:
        """Whether anybody but this tenant has any."""
        return len(self._requests) > (tenant in self._requests)

    def add(self, tenant: str, worker_id: str, seconds: float) -> None:
        """A prompt is to be computed by a worker."""
        row = self._row(worker_id)
        own = self._requests.setdefault(tenant, {})
        own[worker_id] = own.get(worker_id, 0) + 1
        if tenant not in self._turns:
            self._turns[tenant] = np.zeros(len(self._sums))
        self._change(tenant, row, self._seconds.setdefault(worker_id, {}), seconds)

    def remove(self, tenant: str, worker_id: str, seconds: float) -> None:
        """It is computed, or never will be."""
        own, there, row = self._requests[tenant], self._seconds[worker_id], self._rows[worker_id]
        own[worker_id] -= 1
        # The last one takes along what rounding has left.
        self._change(tenant, row, there, -seconds if own[worker_id] else -there[tenant])
        if not own[worker_id]:
            del own[worker_id], there[tenant]
            self._turns[tenant][row] = 0.0
        if not own:
            del self._requests[tenant], self._turns[tenant]
        if not there:
            del self._seconds[worker_id]
            self._sums[row] = 0.0

    def queue_s(self, tenant: str, roster: Roster, state: Floats, all_s: Floats) -> Floats:
        """What a tenant's next prompt has before it on each worker, of `all_s` that there are to be computed.

        That is what is left of the step that is being computed, half of one in the mean, the tenant's own prompts, as
        much of each other tenant's, and what is nobody's.
        """
        rows = self._rows_of(roster)
        step_s = state[at.MAX_BATCH_TOKENS] * state[at.TOKEN_S] + state[at.CHUNK_S]
        before_s = step_s / 2 + np.maximum(all_s - self._sums[rows], 0.0)
        turns = self._turns.get(tenant)
        if turns is not None:
            before_s += turns[rows]
        return np.minimum(all_s, before_s)

    def _change(self, tenant: str, row: int, there: dict[str, float], seconds: float) -> None:
        """A tenant has more, or less, at the worker of a row, which changes whom others let go before them."""
        old_s = there.get(tenant, 0.0)
        new_s = there[tenant] = old_s + seconds
        self._sums[row] += seconds
        turn_s = 0.0
        for other, theirs_s in there.items():
            turn_s += min(theirs_s, new_s)
            if other != tenant:
                self._turns[other][row] += min(theirs_s, new_s) - min(theirs_s, old_s)
        self._turns[tenant][row] = turn_s

    # --- rows

    def _rows_of(self, roster: Roster) -> Slots:
        if self._seats is None or self._seats[0] is not roster:
            rows = [self._rows.get(worker_id, _NOBODYS) for worker_id in roster.worker_ids]
            self._seats = roster, np.array(rows, dtype=np.int64)
        return self._seats[1]

    def _row(self, worker_id: str) -> int:
        row = self._rows.get(worker_id)
        if row is None:
            if len(self._rows) + 1 == len(self._sums):
                self._make_room()
            row = self._rows[worker_id] = len(self._rows) + 1
            self._seats = None
        return row

    def _make_room(self) -> None:
        """Forget workers that have nothing to compute, and have twice as many rows as there are others."""
        busy = [worker_id for worker_id in self._rows if worker_id in self._seconds]
        rows = [_NOBODYS, *(self._rows[worker_id] for worker_id in busy)]
        size = max(2 * len(rows), _FIRST_ROWS)

        def moved(column: Floats) -> Floats:
            return np.concatenate((column[rows], np.zeros(size - len(rows))))

        self._rows = {worker_id: row for row, worker_id in enumerate(busy, 1)}
        self._sums = moved(self._sums)
        self._turns = {tenant: moved(column) for tenant, column in self._turns.items()}
