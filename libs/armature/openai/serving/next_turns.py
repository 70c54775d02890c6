"""Prefills the next turn of a chat ahead, when its client has hinted that there will be one.

An answer's text comes back as part of the next prompt: rendered by the template, which may change or drop some of it,
and tokenized anew, which may cut it differently from how it was made. What the worker has of the answer is then of no
use. While the client thinks, the gateway has the coming prompt computed as far as it is known.

This must never be in anybody's way: it asks for a place with the lowest priority and gives up if there is none at once,
does nothing while queries wait or enough of this is under way, and never tries again.
"""

import asyncio
import logging
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from armature.openai.answer_reader import TOOL_CALLS, AnswerMessage
from armature.openai.assembler import LENGTH, STOP
from armature.openai.errors import ApiError
from armature.openai.parsers.events import AnswerEvent
from armature.openai.serving.backlog import Backlog
from armature.openai.serving.decode_call import DeadlinePassedError, DecodeCall, Limits, WorkerFailedError
from armature.openai.serving.generation import Generation
from armature.openai.serving.job import Job
from armature.openai.serving.metrics import NEXT_TURN_TOKENS, NEXT_TURNS
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.router_client import RouterClient
from armature.openai.serving.worker_streams import WorkerStreams
from armature.openai.tools import rendered_call
from armature.routing.hints import Hints
from armature.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, SamplingParams
from armature.v1.router_pb2 import Assignment

log = logging.getLogger(__name__)

QUEUE_WAIT_S = 0.05
"""A query that has waited so long is in a queue: a router that has room answers within a few milliseconds."""
PLACE_TIMEOUT_S = 0.5
HINTS = Hints(priority=-10, latency_sensitivity=0.0, expected_output_tokens=1)

_NOTHING = array("I")

DONE, CACHED, BUSY, QUEUE, REJECTED, FAILED = "done", "cached", "busy", "queue", "rejected", "failed"
"""What becomes of it: prefilled; the worker has all of it anyway; or not done, and why."""


class NextTurns:
    """Tell it of every generation that has ended."""

    def __init__(
        self, router: RouterClient, workers: WorkerStreams, tasks: asyncio.TaskGroup, options: ServingOptions
    ) -> None:
        self._router = router
        self._workers = workers
        self._tasks = tasks
        self._options = options
        self._under_way = 0
        self._now_s = asyncio.get_running_loop().time

    def ended(self, generation: Generation) -> None:
        """Prepare for the next turn, if there will be one and this is the moment."""
        limit = self._options.max_speculative_prefills
        if generation.job.chat is None or generation.finish_reason not in (STOP, LENGTH, TOOL_CALLS) or not limit:
            return
        if self._under_way >= limit:
            NEXT_TURNS.labels(BUSY).inc()
        elif self._router.longest_wait_s() > QUEUE_WAIT_S:
            NEXT_TURNS.labels(QUEUE).inc()
        else:
            self._under_way += 1
            name = f"next turn of {generation.job.request_id}"
            self._tasks.create_task(self._run(generation), name=name)

    async def _run(self, generation: Generation) -> None:
        outcome = FAILED
        try:
            job = await asyncio.to_thread(_next_job, generation, self._now_s(), self._options.first_token_timeout_s)
            outcome = CACHED if job is None else await self._prefill(job)
        except (ApiError, WorkerFailedError, DeadlinePassedError) as error:
            log.info("the next turn of request %s is not prefilled: %s", generation.job.request_id, error)
        except Exception:  # nobody waits for this, and the gateway must not end for it
            log.exception("the next turn of request %s is not prefilled", generation.job.request_id)
        finally:
            self._under_way -= 1
            NEXT_TURNS.labels(outcome).inc()

    async def _prefill(self, job: Job) -> str:
        try:
            async with asyncio.timeout(PLACE_TIMEOUT_S):
                placement, ledger = await self._router.place(job.query(job.request_id, _NOTHING, ()))
        except TimeoutError:
            return QUEUE
        if not placement.HasField("assigned"):
            return REJECTED
        call = self._open(job, placement.assigned)
        made = 0
        try:
            while True:
                for delta in await call.read():
                    made += len(delta.token_ids)
                    if delta.finish_reason:
                        ended_well = delta.finish_reason in (FINISH_REASON_STOP, FINISH_REASON_LENGTH)
                        NEXT_TURN_TOKENS.inc(len(job.prompt) if ended_well else 0)
                        return DONE if ended_well else FAILED
        finally:
            call.close()
            ledger.finished(job.request_id, made)

    def _open(self, job: Job, assignment: Assignment) -> DecodeCall:
        prefill = assignment.prefill if assignment.HasField("prefill") else None
        timeout_s = self._options.first_token_timeout_s
        request = job.decode_request(job.request_id, _NOTHING, prefill, timeout_s)
        limits = Limits(
            first_token_s=timeout_s,
            stall_s=self._options.stall_timeout_s,
            first_token_due_s=job.due_s,
            due_s=job.due_s,
            backlog=Backlog(self._options.max_buffered_bytes),
        )
        return self._workers.open(assignment.worker_id, assignment.address, request, limits)


def _next_job(generation: Generation, now_s: float, timeout_s: float) -> Job | None:
    """A request for the whole blocks with which the next turn begins; None if the worker has them. Runs on a thread."""
    job, model = generation.job, generation.job.model
    assert job.chat is not None
    block_size = model.hasher.block_size
    token_ids = array("I", model.tokenizer.next_turn(job.chat, _message(generation.said)))
    token_ids = token_ids[: len(token_ids) // block_size * block_size]
    held = job.prompt + generation.output[:-1]  # the last token has been sampled, not computed
    if token_ids == held[: len(token_ids)] or len(token_ids) >= model.card.context_length:
        return None
    return replace(
        job,
        request_id=f"{job.request_id}-next",
        prompt=token_ids,
        digests=model.hasher.extend(model.root, token_ids),
        sampling=SamplingParams(temperature=0.0, seed=0),
        max_tokens=1,
        stop=(),
        include_info=False,
        received_s=now_s,
        due_s=now_s + timeout_s,
        hints=HINTS,
        grammar=None,
        chat=None,
    )


def _message(said: Sequence[AnswerEvent]) -> dict[str, Any]:
    """The answer as the client sends it back, which is without its reasoning.

    Raises:
        ApiError: it has a call that is none, and no client can send it back.
    """
    answer = AnswerMessage(said)
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.calls:
        message["tool_calls"] = [rendered_call(call.call_id, call.name, call.arguments) for call in answer.calls]
    return message
