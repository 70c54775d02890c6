"""Decides what the next step computes: running answers first, then prompts that have begun, then whoever is let in.

Requests are let in strictly in order of rank. What it plans it also enters into the queues and the pool:
a plan is completed or has failed before the next is made.
"""

from collections import deque
from collections.abc import Callable, Iterable

from armature.scheduling.job import LAST, Job, Rank
from armature.scheduling.lifecycle import State
from armature.scheduling.limits import Limits
from armature.scheduling.plan import Slice, StepPlan
from armature.scheduling.queues import Queues
from armature.scheduling.reservations import Reservations
from armature.scheduling.room import Room
from armature.scheduling.shares import FAR_OVER, OVER, Shares
from armature.scheduling.staging import Staging

CROWDED = 4
"""The part of a step that is left to prompts of a tenant over its share is one of so many. Smaller steps are less
efficient: a quarter of 2,048 tokens costs such a tenant a sixth of its speed, a quarter of 8,192 a twentieth."""
SHARES_STEPS = 128
"""How many full steps count at least for who has had how much, and how long a tenant counts as being about."""
MAX_SCORED_TOKENS = 128
"""Of one prompt in one step, where each of them takes a row of logits: 78 MB of 32-bit ones for 152,000 tokens."""


class Planner:
    """Plans steps over one scheduler's queues.

    `hold` is called for a prompt of which nothing is left to compute, but whose blocks stay for a reader.
    """

    def __init__(
        self,
        limits: Limits,
        queues: Queues,
        room: Room,
        reservations: Reservations,
        staging: Staging,
        hold: Callable[[Job], None],
    ) -> None:
        self._limits = limits
        self._queues = queues
        self._room = room
        self._reservations = reservations
        self._staging = staging
        self._hold = hold
        self._block_size = room.block_size
        self._shares = Shares(SHARES_STEPS * limits.max_num_batched_tokens)
        self._crowded_tokens = max(limits.max_num_batched_tokens // CROWDED, 1)
        self._chunk_tokens = 0
        """Planned for prompts in this step."""
        self.decodes: tuple[Job, ...] = ()
        """Running answers of the last plan."""
        self.chunked: list[Job] = []
        """Whose chunks are in it, one by one."""
        self._has_preempted = False
        """While it was made."""
        self._suspects: deque[Job] = deque()
        self._refused: Job | None = None
        self._refused_room = 0

    def plan(self) -> StepPlan | None:
        """The next step, or None if there is nothing to compute."""
        chunks: list[Slice] = []
        self.decodes = ()
        self.chunked.clear()
        self._chunk_tokens = 0
        while self._suspects and not chunks and not self.decodes:
            self._plan_alone(self._suspects.popleft(), chunks)
        if not chunks and not self.decodes:
            self._plan_together(chunks)
        if not chunks and not self.decodes:
            return None
        room = self._room
        prefill_tokens = sum([piece.count for piece in chunks])
        plan = StepPlan(tuple(chunks), tuple(room.opened), tuple(room.sealed), self.decodes, prefill_tokens)
        room.opened.clear()
        room.sealed.clear()
        return plan

    def try_alone(self, jobs: Iterable[Job]) -> None:
        """One of these has made a step fail: plan the next ones for each by itself."""
        self._suspects.extend(jobs)

    def num_equal_steps(self) -> int:
        """For how many steps the same would be planned again, the last plan included, if nobody comes and nobody stops.

        At least 1. The last of them may fill a block or end an answer.
        """
        jobs, block_size = self.decodes, self._block_size
        # Whom a preemption made room for may be let in by the next step.
        if self.chunked or self._has_preempted or len(jobs) < len(self._queues.decoding):
            return 1
        until_end = min([job.end - job.computed for job in jobs]) - 1
        until_sealed = block_size - 1 - max([job.computed % block_size for job in jobs])
        return max(min(until_end, until_sealed), 1)

    def _plan_together(self, chunks: list[Slice]) -> None:
        """Plan for everybody."""
        queues, room = self._queues, self._room
        preemptions = room.preemptions
        self._plan_decodes(queues.decoding)
        budget = self._limits.max_num_batched_tokens - len(self.decodes)
        self._has_preempted = preemptions != room.preemptions
        for job in queues.prefilling[:]:
            # Nobody is let in by the step that had to put somebody out.
            if queues.waiting and queues.waiting[0].rank < job.rank and not self._has_preempted:
                budget = self._admit(chunks, budget, job.rank)
            if not budget:
                break
            allowed = self._allowed(job, budget)
            budget -= self._plan_chunk(job, chunks, allowed) if allowed else 0
        if queues.waiting and not self._has_preempted:
            self._admit(chunks, budget)

    def _plan_alone(self, job: Job, chunks: list[Slice]) -> None:
        """Plan for one job, if it still runs."""
        if job.state is State.DECODING:
            self._plan_decodes([job])
            if job.state is not State.DECODING:
                self.decodes = ()
        elif job.state is State.PREFILLING:
            self._plan_chunk(job, chunks, self._limits.max_num_batched_tokens)

    def _plan_decodes(self, jobs: list[Job]) -> None:
        block_size, room, last = self._block_size, self._room, self._block_size - 1
        for job in jobs:
            start = job.computed
            offset = start % block_size
            if not offset and start == len(job.block_ids) * block_size and not room.grow(job):
                # Only the last of all can have lost its own blocks.
                break
            if offset == last:
                room.seal(job, start, start + 1)
        self.decodes = tuple(jobs)

    def _plan_chunk(self, job: Job, chunks: list[Slice], budget: int) -> int:
        start = job.computed
        target = job.end if job.is_prefill else len(job.token_ids)
        count = min(target - start, budget)
        if job.scores_prompt:
            count = min(count, MAX_SCORED_TOKENS)
        self._shares.note(job.request.tenant, count)
        self._chunk_tokens += count
        self._room.seal(job, start, start + count)
        chunks.append(Slice(job, start, count, not job.is_prefill and start + count == target))
        self.chunked.append(job)
        return count

    def _admit(self, chunks: list[Slice], budget: int, before: Rank = LAST) -> int:
        """Let in whom there is room for, strictly in order, as far as they rank before `before`; the budget left."""
        queues = self._queues
        while queues.waiting and queues.waiting[0].rank < before:
            job = queues.waiting[0]
            if self._is_hopeless(job):
                break
            up_to_block = self._blocks_to_fetch(job)
            if up_to_block:
                # It computes nothing yet, so it needs neither budget nor a seat.
                if self._reservations.is_full:
                    break
                if self._reserve(job, up_to_block):
                    continue
                # With nothing running, only those who wait behind it, and hold blocks all the same, can make room.
                if queues.num_running or not self._room.take_from_waiting(job):
                    break
                continue
            allowed = self._allowed(job, budget)
            if not allowed or queues.num_running >= self._limits.max_num_seqs:
                break
            if not self._room.place(job):
                self._refuse_room(job)
                break
            if job.is_prefill and job.computed >= job.end:
                self._staging.announce(job)
                self._hold(job)
                continue
            queues.start(job)
            queues.note_backlog(job)
            if job.is_prefill:
                self._staging.announce(job)
            budget -= self._plan_chunk(job, chunks, allowed)
        return budget

    def _allowed(self, job: Job, budget: int) -> int:
        """How much of the budget may go to a job: little to a tenant over its share, nothing beside others' prompts."""
        # A prompt that is alone here is in nobody's way yet; only who sends very much makes it likely that one comes.
        is_alone = len(self._queues.waiting) + len(self._queues.prefilling) <= 1
        if not self._shares.is_over(job.request.tenant, FAR_OVER if is_alone else OVER):
            return budget
        return min(budget, max(self._crowded_tokens - self._chunk_tokens, 0))

    def _is_hopeless(self, job: Job) -> bool:
        """Whether there is no more room than when the job was refused, which is worth not searching its prefix for.

        With nothing running it is tried all the same: others may have to give way to it.
        """
        return job is self._refused and self._room.spare_blocks <= self._refused_room and self._queues.num_running > 0

    def _refuse_room(self, job: Job) -> None:
        self._refused, self._refused_room = job, self._room.spare_blocks

    def _blocks_to_fetch(self, job: Job) -> int:
        """Up to which block of its prompt a transport is to bring what is missing; 0: nothing."""
        whole = (job.prompt_tokens - 1) // self._block_size
        if job.wants_fetch:
            self._room.extend_digests(job, whole)
            return whole
        if not job.asks_below:
            return 0
        if not job.digests:
            self._room.extend_digests(job, whole)
            self._reservations.note_seen(job, whole)
        # Decided once: nobody waits for a place among those who read, and a long prompt is long to look up.
        up_to_block = 0 if self._reservations.is_full else self._reservations.find_below(job, whole)
        job.asks_below = up_to_block > 0
        return up_to_block

    def _reserve(self, job: Job, up_to_block: int) -> bool:
        queues = self._queues
        queues.leave(job)
        is_reserved = self._reservations.reserve(job, len(queues.decoding), up_to_block)
        if not is_reserved:
            self._refuse_room(job)
        if job.state is State.WAITING:
            queues.enqueue(job)
        else:
            queues.note_backlog(job)
        return is_reserved
