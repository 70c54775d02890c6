"""Continuous batching over a block pool: which tokens of which requests the next step computes.

Pure bookkeeping: it computes no token and moves no byte. Commands (`submit`, `abort`, ...) and steps (`schedule`, then
`complete` or `fail`) come one after another from one owner, who takes the news with `take`. Requests are served by
priority; among equals tenants take turns, each first come, first served. A block enters the prefix cache only when the
KV of all its tokens has been computed. A token once told is never told again: a preempted request computes its tokens
anew, as if they were a prompt.

When a step fails nobody knows whose fault it was, so each of its requests is tried alone, and ends with an error only
if it fails again.
"""

from array import array
from collections.abc import Mapping, Sequence

from armature.blocks.hashing import BlockHasher
from armature.blocks.pool import BlockPool
from armature.performance.fit import StepFit
from armature.scheduling.job import Job, open_job
from armature.scheduling.lifecycle import Event, State
from armature.scheduling.limits import Limits, refusal
from armature.scheduling.lower_tiers import LowerTiers
from armature.scheduling.offloading import Offloading, OffloadTiming
from armature.scheduling.outbox import Outbox
from armature.scheduling.plan import SampledToken, Slice, StepPlan
from armature.scheduling.planner import Planner
from armature.scheduling.queues import Queues
from armature.scheduling.request import EngineLoad, FinishReason, OffloadNews, Request, StepOutput, TokenOutput
from armature.scheduling.reservations import Reservations
from armature.scheduling.room import Room
from armature.scheduling.staging import Staging


class Scheduler:
    """Decides steps and keeps every request's state between them."""

    def __init__(
        self,
        limits: Limits,
        pool: BlockPool,
        hasher: BlockHasher,
        lower: LowerTiers | None = None,
        timing: OffloadTiming | None = None,
    ) -> None:
        """`lower`: what is kept below the device, if anything is; blocks are offered to it in good `timing`."""
        self._limits = limits
        self._pool = pool
        self._block_size = hasher.block_size
        self._pool_tokens = pool.total_blocks * hasher.block_size
        self._outbox = Outbox()
        self._queues = Queues(hasher.block_size, limits.max_num_batched_tokens)
        self._room = Room(pool, hasher, self._queues)
        self._lower = lower
        self._offloading = None if lower is None else Offloading(timing or OffloadTiming(), pool, lower)
        self._reservations = Reservations(pool, self._outbox, hasher.block_size, limits.max_num_seqs, lower)
        self._staging = Staging(pool, self._outbox, hasher.block_size)
        self._planner = Planner(limits, self._queues, self._room, self._reservations, self._staging, self._hold)
        self._jobs: dict[str, Job] = {}
        self._computed_prefill_tokens = 0

    # --- commands

    def submit(self, request: Request) -> None:
        """Queue a request, or answer it at once if it can't be served or has nothing left to do."""
        reason = self._refusal(request)
        if reason:
            self._outbox.refuse(request, reason)
            return
        rank = self._queues.rank_of(request)
        job = open_job(request, rank, self._limits, self._block_size, self._pool_tokens)
        job.asks_below = self._lower is not None and job.finds_blocks and not job.wants_fetch
        self._jobs[job.request_id] = job
        self._queues.enqueue(job)
        if job.is_prefill and request.cached_only:
            self._room.place_cached(job)
            self._staging.announce(job)
            self._hold(job)
            return
        finish_reason = self._finish_reason(job)
        if finish_reason is not None:
            self._end(job, finish_reason)

    def abort(self, request_id: str) -> None:
        """End a request now, or once nothing writes to its blocks any more. A GENERATE request answers CANCELLED."""
        job = self._jobs.get(request_id)
        if job is None:
            return
        if job.state is State.FETCHING:
            job.is_aborted = True
        else:
            self._end(job, FinishReason.CANCELLED)

    def land(self, request_id: str, num_blocks: int) -> None:
        """The first `num_blocks` reserved blocks hold verified bytes."""
        job = self._jobs.get(request_id)
        if job is not None and job.state is State.FETCHING:
            self._reservations.land(job, num_blocks)

    def finish_remote(self, request_id: str, num_blocks: int, quarantined: Sequence[int] = ()) -> None:
        """Go on with the first `num_blocks` reserved blocks; see `Engine.finish_remote`."""
        job = self._jobs.get(request_id)
        if job is None or job.state is not State.FETCHING:
            return
        self._reservations.finish(job, num_blocks, quarantined)
        self._queues.enqueue(job)
        if job.is_aborted:
            self._end(job, FinishReason.CANCELLED)
        elif job.is_stopped:
            self._hold(job)

    def unquarantine(self, block_ids: Sequence[int]) -> None:
        """Nothing can write to these blocks any more."""
        self._pool.unquarantine(block_ids)

    def stop_prefill(self, request_id: str) -> None:
        """Compute no further for a PREFILL request, but hold what is staged."""
        job = self._jobs.get(request_id)
        if job is None or not job.is_prefill or job.state is State.HOLDING:
            return
        if job.state is State.FETCHING:
            job.is_stopped = True
        else:
            self._hold(job)

    def release(self, request_id: str, up_to_block: int | None = None) -> None:
        """Let go of staged blocks below prompt index `up_to_block`; None: of all, and end the request."""
        job = self._jobs.get(request_id)
        if job is None or not job.is_prefill:
            return
        if up_to_block is None:
            self.abort(request_id)
            return
        self._staging.release(job, up_to_block)
        self._end_if_released(job)

    def offloaded(self, run_id: int) -> None:
        """A run of blocks is copied below, or never will be."""
        if self._offloading is not None:
            self._offloading.over(run_id)

    def clear_cache(self) -> None:
        """Forget all cached content; running requests keep their blocks."""
        self._pool.clear()

    # --- steps

    def schedule(self) -> StepPlan | None:
        """The next step, or None if nothing can be computed before another command comes."""
        return self._planner.plan()

    def num_equal_steps(self) -> int:
        """For how many steps the same would be planned again; see `Planner.num_equal_steps`."""
        return self._planner.num_equal_steps()

    def complete(self, plan: StepPlan, sampled: Sequence[SampledToken]) -> None:
        """Take in what the step yielded: one token per running answer, then one per chunk that samples."""
        self._commit(plan)
        decodes = self._planner.decodes
        for job, token in zip(decodes, sampled[: len(decodes)], strict=True):
            job.computed = len(job.token_ids)
            self._accept(job, token)
        self._complete_chunks(plan, sampled[len(decodes) :])

    def complete_unread(self, plan: StepPlan, num_steps: int, answers: Mapping[str, "array[int]"]) -> None:
        """Take in as many equal steps, of answers that nobody reads: each goes on with the same token for ever.

        `answers` has that token by request, as an array of one. Told are only first tokens and ends; a token ends an
        answer by its place, never by what it is.
        """
        self._commit(plan)
        for job in self._planner.decodes:
            token_ids, token = job.token_ids, answers[job.request_id]
            token_ids.extend(token if num_steps == 1 else token * num_steps)
            length = len(token_ids)
            job.computed = length - 1
            if length >= job.end:
                index, reason = length - 1 - job.prompt_tokens, FinishReason.LENGTH
                self._outbox.tokens.append(TokenOutput(job.request_id, index, (token[0],), reason, job.cached_tokens))
                self._forget(job)
        sampling = [piece.sequence.request.request_id for piece in plan.chunks if piece.samples]
        self._complete_chunks(plan, [SampledToken(answers[request_id][0]) for request_id in sampling])

    def _commit(self, plan: StepPlan) -> None:
        self._computed_prefill_tokens += plan.prefill_tokens
        for block_id, digest in plan.sealed:
            self._pool.commit(block_id, digest)

    def _complete_chunks(self, plan: StepPlan, sampled: Sequence[SampledToken]) -> None:
        tokens = iter(sampled)
        for job, piece in zip(self._planner.chunked, plan.chunks, strict=True):
            job.computed = piece.start + piece.count
            if job.state is State.PREFILLING:
                self._advance_prefill(job, piece)
            if piece.samples:
                self._accept(job, next(tokens))

    def fail(self, plan: StepPlan, error: str) -> None:
        """The step raised. A request that was alone in it ends with ERROR, several are tried again one by one."""
        # Whatever the step has written is written again, so it must not look complete.
        self._outbox.opened += plan.opened
        self._outbox.opened += [block_id for block_id, _ in plan.sealed]
        planned = [*self._planner.decodes, *self._planner.chunked]
        if len(planned) == 1:
            self._end(planned[0], FinishReason.ERROR, error)
        else:
            self._planner.try_alone(planned)

    def fail_all(self, error: str) -> None:
        """Tell every request that it has failed. The scheduler must not be used afterwards."""
        for job in self._jobs.values():
            self._outbox.end(job, FinishReason.ERROR, error)
        self._jobs.clear()

    # --- news

    @property
    def has_work(self) -> bool:
        """Whether any request is known."""
        return bool(self._jobs)

    def output_tokens(self) -> dict[str, int]:
        """How many each known answer has, by request."""
        jobs = [job for job in self._jobs.values() if not job.is_prefill]
        return {job.request_id: len(job.token_ids) - job.prompt_tokens for job in jobs}

    @property
    def preemptions(self) -> int:
        """Since the start."""
        return self._room.preemptions

    @property
    def has_news(self) -> bool:
        """Whether a receiver is waiting for something that is known already."""
        return bool(self._outbox.tokens or self._outbox.reserved or self._outbox.staged)

    def take_opened(self) -> list[int]:
        """Blocks whose digests must be zeroed before the next `take` is told to anyone."""
        opened, self._outbox.opened = self._outbox.opened, []
        return opened

    def take_left(self) -> list[str]:
        """Requests forgotten since the last call."""
        left, self._outbox.left = self._outbox.left, []
        return left

    def take(self, load: EngineLoad) -> StepOutput:
        """All news since the last call."""
        outbox = self._outbox
        news = None if self._offloading is None else self._take_offload_news(self._offloading)
        output = StepOutput(
            tuple(outbox.tokens), tuple(outbox.reserved), tuple(outbox.staged), self._pool.take_events(), load, news
        )
        outbox.tokens.clear()
        outbox.reserved.clear()
        outbox.staged.clear()
        return output

    def _take_offload_news(self, offloading: Offloading) -> OffloadNews | None:
        runs, seen = offloading.take(), self._outbox.seen
        if not runs and not seen:
            return None
        news = OffloadNews(tuple(runs), tuple(seen), offloading.missed_blocks)
        seen.clear()
        return news

    def load(self, fit: StepFit, failed_steps_in_a_row: int = 0) -> EngineLoad:
        """What there is to do."""
        return EngineLoad(
            running_seqs=self._queues.num_running,
            waiting_seqs=len(self._queues.waiting) + self._reservations.fetching,
            waiting_prefill_tokens=self._queues.backlog,
            free_blocks=self._pool.free_blocks,
            total_blocks=self._pool.total_blocks,
            cached_blocks=self._pool.cached_blocks,
            quarantined_blocks=self._pool.quarantined_blocks,
            staged_blocks=self._staging.blocks,
            prefill_tokens_per_s=fit.prefill_tokens_per_s,
            decode_step_s=fit.decode_step_s,
            step_costs=fit.model,
            computed_prefill_tokens=self._computed_prefill_tokens,
            preemptions=self._room.preemptions,
            failed_steps_in_a_row=failed_steps_in_a_row,
        )

    # --- results

    def _advance_prefill(self, job: Job, piece: Slice) -> None:
        if piece.samples:
            self._queues.answer(job)
            return
        self._queues.note_backlog(job)
        if job.is_prefill:
            self._staging.announce(job)
            if job.computed >= job.end:
                self._hold(job)

    def _accept(self, job: Job, sampled: SampledToken) -> None:
        token_id, logprobs, is_last, error, embedding, scores = sampled
        if error:
            self._end(job, FinishReason.ERROR, error)
            return
        token_ids = job.token_ids
        length = len(token_ids)
        token_ids.append(token_id)
        reason = FinishReason.STOP if is_last else None
        if not is_last and (length + 1 >= job.end or token_id in job.stop_ids):
            reason = self._finish_reason(job)
        told_logprobs = () if logprobs is None else (logprobs,)
        index = length - job.prompt_tokens
        # One is made per token: this way it takes half as long.
        cached = job.cached_tokens
        told = (job.request_id, index, (token_id,), reason, cached, told_logprobs, "", embedding, scores)
        self._outbox.tokens.append(tuple.__new__(TokenOutput, told))
        if reason is not None:
            self._forget(job)

    def _finish_reason(self, job: Job) -> FinishReason | None:
        length = len(job.token_ids)
        if job.is_prefill:
            return None
        if job.token_ids[-1] in job.stop_ids and length > job.stop_after:
            return FinishReason.STOP
        return FinishReason.LENGTH if length >= job.end else None

    # --- ends

    def _refusal(self, request: Request) -> str:
        if request.request_id in self._jobs:
            return f"request id {request.request_id} is in use"
        free_seats = self._limits.max_num_seqs - self._queues.num_running
        if len(self._queues.waiting) >= self._limits.max_waiting + free_seats:
            return f"queue full: {len(self._queues.waiting)} requests are waiting"
        return refusal(request, self._limits, self._pool_tokens)

    def _end(self, job: Job, reason: FinishReason, error: str = "") -> None:
        """End a job that is not told its end with a token. A cancelled PREFILL has nobody who waits for an answer."""
        if not job.is_prefill or reason is FinishReason.ERROR:
            self._outbox.end(job, reason, error)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._queues.leave(job)
        self._staging.drop(job)
        if self._offloading is not None:
            complete = min(len(job.digests), job.computed // self._block_size)
            self._offloading.released(job.digests[:complete], job.request.terms)
        self._pool.release(job.block_ids[job.held_from :])
        if job.is_prefill:
            # Blocks released one by one are older than their successors now; a prefix must be evicted from its tail.
            self._pool.touch(job.digests[: len(job.block_ids)])
        job.advance(Event.FINISH)
        self._queues.forget(job)
        del self._jobs[job.request_id]
        self._outbox.left.append(job.request_id)

    def _hold(self, job: Job) -> None:
        """Compute no more of it; its blocks stay for the reader."""
        self._queues.leave(job)
        self._staging.hold(job)
        self._queues.note_backlog(job)
        self._end_if_released(job)

    def _end_if_released(self, job: Job) -> None:
        if job.state is State.HOLDING and job.held_from >= len(job.block_ids):
            self._end(job, FinishReason.CANCELLED)
