"""The three places where requests stand in line: waiting, prefilling, decoding.

Each is in order of rank: the higher priority first, among equals tenants take turns, and those of one tenant go in the
order in which they came.
"""

from bisect import insort
from collections import deque
from operator import attrgetter

from armature.scheduling.job import Job, Rank
from armature.scheduling.lifecycle import Event, State
from armature.scheduling.request import Request
from armature.scheduling.turns import Turns

by_rank = attrgetter("rank")
CREDIT_STEPS = 16
"""A tenant that has had less than others goes before them by up to what so many steps compute."""


class Queues:
    """Moves jobs between the lines and keeps the sum of prompt tokens that are still to be computed."""

    def __init__(self, block_size: int, step_tokens: int = 0) -> None:
        self._block_size = block_size
        self.waiting: deque[Job] = deque()
        self.prefilling: list[Job] = []
        self.decoding: list[Job] = []
        self.backlog = 0
        self._turns = Turns(CREDIT_STEPS * step_tokens)
        self._arrivals = 0

    @property
    def num_running(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def rank_of(self, request: Request) -> Rank:
        """The place in line of a request that comes now."""
        self._arrivals += 1
        # Of a prompt that is computed elsewhere only the tail is work here.
        tokens = self._block_size if request.remote and not request.cached_only else len(request.token_ids)
        return -request.priority, self._turns.take(request.tenant, tokens), self._arrivals

    def note_cached(self, job: Job) -> None:
        """It is known how much of a job's prompt need not be computed."""
        self._turns.save(job.request.tenant, job.cached_tokens)

    def enqueue(self, job: Job) -> None:
        """Let a WAITING job wait, in its place: one that comes back may stand near the front."""
        if not self.waiting or self.waiting[-1].rank < job.rank:
            self.waiting.append(job)
        else:
            insort(self.waiting, job, key=by_rank)
        self.note_backlog(job)

    def start(self, job: Job) -> None:
        """From waiting to prefilling."""
        self.leave(job)
        self._turns.begin(job.rank[1])
        if not self.waiting:
            self._turns.tidy()
        job.advance(Event.ADMIT)
        insort(self.prefilling, job, key=by_rank)

    def answer(self, job: Job) -> None:
        """From prefilling to decoding."""
        self.leave(job)
        job.advance(Event.FIRST_TOKEN)
        insort(self.decoding, job, key=by_rank)
        self.note_backlog(job)

    def leave(self, job: Job) -> None:
        """Out of whichever line it stands in."""
        if job.state is State.WAITING:
            if self.waiting[0] is job:
                self.waiting.popleft()
            else:
                self.waiting.remove(job)
        elif job.state is State.PREFILLING:
            self.prefilling.remove(job)
            if not self.prefilling and not self.waiting:
                self._turns.rest()
        elif job.state is State.DECODING:
            self.decoding.remove(job)

    def idle_holders(self) -> list[Job]:
        """Waiting jobs that have blocks all the same: fetched, or found in the cache."""
        return [job for job in self.waiting if job.block_ids]

    def note_backlog(self, job: Job) -> None:
        """Bring the sum up to date after a change of the job's progress or state."""
        backlog = self._backlog_of(job)
        self.backlog += backlog - job.backlog
        job.backlog = backlog

    def forget(self, job: Job) -> None:
        self.backlog -= job.backlog
        job.backlog = 0

    def _backlog_of(self, job: Job) -> int:
        if job.state in (State.DECODING, State.HOLDING):
            return 0
        if job.is_prefill:
            return job.end - job.computed
        if job.wants_fetch:
            return len(job.token_ids) - (job.prompt_tokens - 1) // self._block_size * self._block_size
        if job.state in (State.WAITING, State.FETCHING):
            return len(job.token_ids) - len(job.block_ids) * self._block_size
        return len(job.token_ids) - job.computed
