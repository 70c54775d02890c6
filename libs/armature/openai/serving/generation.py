"""The life of one request: place it, read its tokens, and move it when its worker fails.

A moved request goes on with prompt and tokens so far, on another worker. Since a token depends on seed and position
only, the client sees the text that it would have seen undisturbed: `output_index` tells what is there already. However
this ends, the worker and whoever placed the request are told.
"""

import asyncio
import logging
from array import array
from collections.abc import AsyncGenerator, Callable, Sequence

from armature.openai.answers import Usage
from armature.openai.assembler import LENGTH, STOP, Assembler, Piece
from armature.openai.errors import ApiError, deadline_exceeded, no_workers, overloaded
from armature.openai.packed_tokens import TopTokens
from armature.openai.parsers.events import AnswerEvent
from armature.openai.prompt_scores import is_complete
from armature.openai.serving.backlog import Backlog
from armature.openai.serving.decode_call import (
    ClientTooSlowError,
    DeadlinePassedError,
    DecodeCall,
    Limits,
    WorkerFailedError,
)
from armature.openai.serving.job import Job
from armature.openai.serving.metrics import (
    MIGRATIONS,
    ROUTE_S,
    of_model,
)
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.router_client import Ledger, RouterClient
from armature.openai.serving.worker_streams import WorkerStreams
from armature.v1.common_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    PromptLogprobs,
    ServingInfo,
)
from armature.v1.router_pb2 import Assignment, Rejection
from armature.v1.worker_pb2 import TokenDelta, WorkerError

log = logging.getLogger(__name__)

PREDICTION_FACTOR = 4.0
"""How far a first token may be behind the router's prediction before its worker's silence counts as a stall."""
LAST_RESORT_PAUSES_S = (0.25, 2.0, 8.0)
"""Before a request goes back to a worker that has failed it, because there is no other: the first time, the second and
from then on. A dead one is told of as living until its lease has ended, 10 s as a rule; then nobody is sent there."""

CANCELLED, ERROR = "cancelled", "error"
"""Why an answer was not completed: the client left, or something failed."""

_NO_REASON = "it does not say why"

_REASONS = {FINISH_REASON_STOP: STOP, FINISH_REASON_LENGTH: LENGTH}


class Generation:
    """Serves one job; `pieces` is iterated once, and closed by whoever iterates it. Then `on_end` is called.

    Who can take pieces without waiting sets `on_piece`: it gets those that come while the iteration waits, and says
    whether it could take more. The first and the last, and what goes wrong, come by iteration in any case.
    """

    def __init__(
        self,
        job: Job,
        router: RouterClient,
        workers: WorkerStreams,
        options: ServingOptions,
        on_end: "Callable[[Generation], None]",
        backlog: Backlog,
    ) -> None:
        self.job = job
        self._backlog = backlog
        self.finish_reason = CANCELLED
        """Once it has ended: why."""
        self.info = ServingInfo()
        """How the request is being served; complete once the first piece is there."""
        self.migrations = 0
        self.on_piece: Callable[[Piece], bool] | None = None
        self._takes_pieces = False
        self._router = router
        self._workers = workers
        self._options = options
        self._output = array("I")
        self._on_end = on_end
        self._excluded: list[str] = []
        self.prompt_logprobs: PromptLogprobs | None = None
        """How likely the prompt's tokens were, if asked for; there with the first piece."""
        self._wants_scores = job.wants_scores
        self._is_plain = not (self._wants_scores or job.sampling.logprobs or job.chat is not None)
        """Whether nothing but its text is wanted of a token."""
        self._failure: Exception | None = None
        self._cached_tokens: int | None = None
        self._worker_info = ServingInfo()
        """Of the prompt that the worker was sent, which has our own output in it after a move."""
        self._said: list[AnswerEvent] = []
        self._last_s = 0.0
        self._now_s = asyncio.get_running_loop().time
        self._metrics = of_model(job.model.name)
        self._assembler = Assembler(
            job.model.tokenizer.vocabulary, stop=job.stop, end_ids=job.end_ids, prompt=job.prompt, reading=job.reading
        )

    @property
    def output(self) -> "array[int]":
        """The tokens that have been made."""
        return self._output

    @property
    def said(self) -> Sequence[AnswerEvent]:
        """The answer so far; kept for chats whose next turn is to be prepared, empty for others."""
        return self._said

    @property
    def stop_string(self) -> str | None:
        """The stop string that has ended the answer."""
        return self._assembler.stop_string

    @property
    def usage(self) -> Usage:
        assembler = self._assembler
        return Usage(
            len(self.job.prompt), assembler.completion_tokens, self._cached_tokens or 0, assembler.reasoning_tokens
        )

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer; its last piece, and no other, has a finish reason. Pieces may be empty.

        Raises:
            ApiError: it can't be served, or not to its end.
        """
        self._metrics.accepted(len(self.job.prompt))
        try:
            while (reason := self._is_over()) is None:
                attempt_id = self.job.request_id + (f"-{self.migrations}" if self.migrations else "")
                assignment, ledger = await self._place(attempt_id)
                call = self._open(attempt_id, assignment)
                known = len(self._output)
                try:
                    is_told = self._takes_pieces = False
                    while True:
                        piece = self._accept(await call.read())
                        if piece.token_ids and not is_told:
                            is_told = True
                            ledger.first_token(attempt_id, self._worker_info)
                        if piece.token_ids or piece.finish_reason is not None:
                            yield piece
                        if piece.finish_reason is not None:
                            self.finish_reason = piece.finish_reason
                            return
                        if self._failure is not None:
                            raise self._failure
                        self._takes_pieces = is_told
                except WorkerFailedError as failure:
                    self._failure = None
                    self._move_on(assignment.worker_id, str(failure))
                finally:
                    call.close()
                    ledger.finished(attempt_id, len(self._output) - known)
            yield self._assembler.feed((), (), reason)
            self.finish_reason = reason
        except DeadlinePassedError as error:
            self.finish_reason = ERROR
            raise self._deadline(before_first_token=error.before_first_token) from None
        except ClientTooSlowError:
            self.finish_reason = ERROR
            raise overloaded("The client reads its answer too slowly") from None
        except Exception:
            self.finish_reason = ERROR
            raise
        finally:
            self._metrics.ended(self.usage)
            self._on_end(self)

    # --- placement

    async def _place(self, attempt_id: str) -> tuple[Assignment, Ledger]:
        job, due_s = self.job, self.job.due_s
        if not self._output:
            due_s = min(due_s, job.received_s + self._options.first_token_timeout_s)
        while True:
            started_s = self._now_s()
            lost = [worker_id for worker_id in self._workers.lost if worker_id not in self._excluded]
            try:
                query = job.query(attempt_id, self._output, [*self._excluded, *lost])
                placement, ledger = await self._router.place(query, due_s)
                if lost and not placement.HasField("assigned"):
                    # Nobody else can take it: one that seemed lost may.
                    query = job.query(attempt_id, self._output, self._excluded)
                    placement, ledger = await self._router.place(query, due_s)
            except TimeoutError:
                raise self._deadline(before_first_token=due_s < job.due_s) from None
            ROUTE_S.observe(self._now_s() - started_s)
            if placement.HasField("assigned"):
                return placement.assigned, ledger
            pause_s = LAST_RESORT_PAUSES_S[min(self.migrations, len(LAST_RESORT_PAUSES_S)) - 1]
            if not self._excluded or self._now_s() + pause_s >= due_s:
                raise rejected(placement.rejected)
            # Only workers that have failed this request are left, and one of them may be back.
            await asyncio.sleep(pause_s)
            self._excluded.clear()

    def _open(self, attempt_id: str, assignment: Assignment) -> DecodeCall:
        job, options, now_s = self.job, self._options, self._now_s()
        prefill = assignment.prefill if assignment.HasField("prefill") else None
        request = job.decode_request(attempt_id, self._output, prefill, max(0.001, job.due_s - now_s))
        if not self._wants_scores:
            request.sampling.ClearField("prompt_logprobs")  # an earlier worker has told
        first_due_s = float("inf") if self._output else job.received_s + options.first_token_timeout_s
        limits = Limits(
            first_token_s=options.stall_timeout_s + PREDICTION_FACTOR * assignment.predicted_ttft_s,
            stall_s=options.stall_timeout_s,
            first_token_due_s=first_due_s,
            due_s=job.due_s,
            backlog=self._backlog,
        )
        self.info.decode_worker = assignment.worker_id
        self.info.reason = assignment.reason
        self._worker_info = ServingInfo()
        call = self._workers.open(assignment.worker_id, assignment.address, request, limits)
        if not job.stop:  # which could be found in any piece
            call.on_deltas = self._pass_on
        return call

    def _move_on(self, worker_id: str, why: str) -> None:
        log.warning("request %s leaves %s after %d tokens: %s", self.job.request_id, worker_id, len(self._output), why)
        if worker_id not in self._excluded:
            self._excluded.append(worker_id)
        if self.migrations >= self._options.migration_limit:
            message = f"The request was moved {self.migrations} times and its last worker failed too: {why}"
            raise no_workers(message)
        self.migrations += 1
        self.info.migrations = self.migrations
        MIGRATIONS.inc()

    # --- tokens

    def _pass_on(self, deltas: Sequence[TokenDelta]) -> bool:
        """Give `on_piece` what these add, unless that could be the last piece, or a failure."""
        if not self._takes_pieces or self.on_piece is None:
            return False
        output = self._output
        known = len(output)
        if self._is_plain and len(deltas) == 1 and deltas[0].output_index == known and not deltas[0].finish_reason:
            # Nearly every token of nearly every answer: what `_accept` comes to.
            token_ids = deltas[0].token_ids[:]
            output.extend(token_ids)
            now_s = self._now_s()
            self._metrics.gaps_s.observe(now_s - self._last_s, len(token_ids))
            self._last_s = now_s
            self._takes_pieces = self.on_piece(self._assembler.feed(token_ids))
            return True
        for delta in deltas:
            if delta.output_index != known or delta.finish_reason:
                return False
            known += len(delta.token_ids)
        self._takes_pieces = self.on_piece(self._accept(deltas))
        return True

    def _accept(self, deltas: Sequence[TokenDelta]) -> Piece:
        """What the deltas add to the answer. What ends them badly is left in `_failure`: first goes what is good."""
        output = self._output
        token_ids: list[int] = []
        logprobs: list[TopTokens] = []
        reason: str | None = None
        wants_logprobs = self.job.sampling.logprobs
        for delta in deltas:
            known = len(output) - delta.output_index
            if known < 0:
                self._failure = WorkerFailedError(f"tokens {len(output)} to {delta.output_index - 1} are missing")
                break
            new = delta.token_ids[known:]
            output.extend(new)
            token_ids = token_ids + new if token_ids else new
            if wants_logprobs:
                logprobs.extend(_top_tokens(delta)[known:])
            if not known and delta.HasField("info"):
                self._take_info(delta.info)
            if delta.finish_reason:
                reason = _REASONS.get(delta.finish_reason)
                self._failure = _failure(delta) if reason is None else None
            if self._wants_scores and new and not self._take_scores(delta.prompt_logprobs):
                self._failure, reason = WorkerFailedError("it does not tell how likely the prompt's tokens were"), None
        self._measure(self._now_s(), len(token_ids))
        if token_ids and not self.job.max_tokens:
            del output[:]
            return self._assembler.feed((), (), LENGTH if self._failure is None else None)
        piece = self._assembler.feed(token_ids, logprobs, reason)
        if self.job.chat is not None:
            self._said += piece.said
        return piece

    def _take_scores(self, told: PromptLogprobs) -> bool:
        """Whether all is told that is to be told of the prompt."""
        self._wants_scores = not is_complete(told, len(self.job.prompt))
        if not self._wants_scores:
            self.prompt_logprobs = told
        return not self._wants_scores

    def _measure(self, now_s: float, tokens: int) -> None:
        if self._last_s:
            self._metrics.gaps_s.observe(now_s - self._last_s, tokens)
        elif tokens:
            self.info.ttft_s = now_s - self.job.received_s
            self._metrics.ttft_s.observe(self.info.ttft_s)
        self._last_s = now_s

    def _is_over(self) -> str | None:
        """Why the answer is complete, if it is: a worker may fail between its last token and saying so."""
        output, job = self._output, self.job
        if output and output[-1] in job.end_ids and len(output) > job.sampling.min_tokens:
            return STOP
        return LENGTH if len(output) >= job.max_tokens and not self._wants_scores else None

    def _take_info(self, info: ServingInfo) -> None:
        ours = self.info
        self._worker_info = info
        if self._cached_tokens is None:  # of the prompt; a later worker's would count our own output too
            self._cached_tokens = min(max(info.cached_tokens, info.prefill_cached_tokens), len(self.job.prompt))
        info.decode_worker = info.decode_worker or ours.decode_worker
        info.ttft_s, info.migrations, info.reason = ours.ttft_s, self.migrations, ours.reason
        ours.CopyFrom(info)

    def _deadline(self, *, before_first_token: bool) -> ApiError:
        options = self._options
        if before_first_token:
            return deadline_exceeded(f"No token was produced within {options.first_token_timeout_s:g} s")
        budget_s = self.job.due_s - self.job.received_s
        return deadline_exceeded(f"The answer was not complete within {budget_s:g} s")


def _top_tokens(delta: TokenDelta) -> list[TopTokens]:
    return [[(token.token_id, token.logprob) for token in entry.tokens] for entry in delta.logprobs]


def _failure(delta: TokenDelta) -> Exception:
    """What a last delta means that is no regular end."""
    if delta.finish_reason == FINISH_REASON_CANCELLED:
        return WorkerFailedError("the worker cancelled it")
    code, message = delta.error.code, delta.error.message
    if code == WorkerError.CODE_INVALID:
        return ApiError(400, f"The worker refuses the request: {message or _NO_REASON}", code="invalid_value")
    if code == WorkerError.CODE_DEADLINE_EXCEEDED:
        return DeadlinePassedError(before_first_token=False)
    return WorkerFailedError(f"{WorkerError.Code.Name(code)}: {message}")


def rejected(rejection: Rejection) -> ApiError:
    """What a router's refusal means to a client."""
    retry_after_s, reason = max(1.0, rejection.retry_after_s), rejection.reason or _NO_REASON
    if rejection.code == Rejection.CODE_OVERLOADED:
        return overloaded(f"All workers are busy: {reason}", retry_after_s)
    return no_workers(f"No worker can take the request: {reason}", retry_after_s)
