"""Requests that this worker answers with tokens: from a client's stream into the engine, and back.

A request ends for its client at once when it is cancelled or late; it lives on here until the engine has let go of it,
and the engine does so only when no transport writes to its blocks any more.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from armature.blocks.hashing import BlockHasher
from armature.engines.engine import Engine
from armature.engines.host import metrics
from armature.engines.host.client_stream import ClientStream, Generation
from armature.engines.host.conversion import (
    FINISH_REASONS,
    check_grammar,
    check_lengths,
    check_model,
    check_prompt,
    code_of,
    logprobs_of,
    prompt_logprobs_of,
    sampling_of,
    unpack_tokens,
)
from armature.engines.host.duty import Duty
from armature.engines.host.fetch import FetchReport
from armature.engines.host.remote_prompts import RemotePrompts
from armature.engines.host.tiers.onboarder import OnboardReport
from armature.runtime import telemetry
from armature.runtime.errors import ArmatureError, CallerError, UnavailableError
from armature.runtime.pulse import Pulse
from armature.runtime.tasks import Spawn
from armature.scheduling.request import FinishReason, Request, Reserved, TokenOutput
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import DecodeRequest, PrefillTarget, WorkerError

MAX_COMPILING = 256
"""Requests that may wait for their grammars; one takes a millisecond, and the same one again nothing."""


class Generations:
    """Every request of this worker's clients."""

    def __init__(
        self,
        engine: Engine,
        hasher: BlockHasher,
        remote: RemotePrompts | None,
        *,
        duty: Duty,
        member_id: str,
        spawn: Spawn,
    ) -> None:
        """`remote`: fetches prompts that others compute or have cached; None: all are computed here."""
        self._engine = engine
        self._hasher = hasher
        self._remote = remote
        self._duty = duty
        self._member_id = member_id
        self._spawn = spawn
        self._all: dict[str, Generation] = {}
        self._numbers = itertools.count(1)
        self._compiling = 0
        self._ended = Pulse()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._all)

    # --- from clients

    def accept(self, stream: ClientStream, request: DecodeRequest) -> None:
        """Begin to answer; a wrong request, or one that comes too late, is answered with its error."""
        twin = stream.live.get(request.stream_id)
        if twin is not None:
            # The two answers could not be told apart, so the client gets neither.
            self._end(twin, FinishReason.ERROR, WorkerError.CODE_INVALID, "stream_id was used twice")
            return
        try:
            if self.is_draining:
                raise UnavailableError("this worker is draining")
            self._duty.check_answers()
            if request.HasField("grammar") and self._compiling >= MAX_COMPILING:
                raise UnavailableError(f"queue full: {self._compiling} grammars are waiting to be compiled")
            generation = self._open(stream, request)
        except ArmatureError as error:
            code = WorkerError.CODE_INVALID if isinstance(error, CallerError) else WorkerError.CODE_UNAVAILABLE
            metrics.requests.labels("refused").inc()
            delta = stream.tokens.put(request.stream_id, 0, (), common.FINISH_REASON_ERROR)
            delta.error.code, delta.error.message = code, str(error)
            return
        stream.live[request.stream_id] = generation
        self._all[generation.engine_id] = generation

    def cancel(self, stream: ClientStream, stream_id: int) -> None:
        """Stop a request; one that has ended already is left alone."""
        generation = stream.live.get(stream_id)
        if generation is not None:
            self._end(generation, FinishReason.CANCELLED)

    def cancel_all(self, stream: ClientStream) -> None:
        """Stop everything on a stream, most likely because it has broken."""
        for generation in list(stream.live.values()):
            self._end(generation, FinishReason.CANCELLED)

    async def drain(self) -> None:
        """Take nothing new; return when all has been answered."""
        self.is_draining = True
        while self._all:
            await self._ended.wait()

    # --- from the engine

    def on_tokens(self, outputs: Sequence[TokenOutput]) -> None:
        """Pass on what a step yielded."""
        made = 0
        for output in outputs:
            generation = self._all.get(output.request_id)
            if generation is None:
                continue
            made += len(output.token_ids)
            if generation.stream is not None:
                self._tell(generation, generation.stream, output)
            if output.finish_reason is not None:
                self._forget(generation, output.finish_reason)
        metrics.decode_tokens.inc(made)

    def on_onboarding(self, engine_id: str, report: OnboardReport) -> None:
        """Blocks of a prompt are being read from tiers below the device."""
        generation = self._all.get(engine_id)
        if generation is not None:
            generation.onboarding = report

    def on_reserved(self, reserved: Reserved) -> None:
        """There is room for a prompt's blocks: fetch them, if they are still wanted."""
        assert self._remote is not None, "an engine that keeps its blocks to itself has reserved room for others'"
        self._remote.begin(self._all.get(reserved.request_id), reserved)

    # --- one request

    def _open(self, stream: ClientStream, request: DecodeRequest) -> Generation:
        info = self._engine.info
        check_model(request.model, info)
        token_ids = unpack_tokens(request.token_ids, info)
        prompt_tokens = check_lengths(request, len(token_ids))
        check_prompt(prompt_tokens, info)
        sampling = sampling_of(request.sampling, info)
        check_grammar(request)
        generation = Generation(
            engine_id=f"d-{next(self._numbers)}",
            stream_id=request.stream_id,
            stream=stream,
            request=request,
            prompt_tokens=prompt_tokens,
            next_index=len(token_ids) - prompt_tokens,
            span=telemetry.start_span(
                "decode", traceparent=request.traceparent, request_id=request.request_id, prompt_tokens=prompt_tokens
            ),
        )
        if request.timeout_s:
            loop = asyncio.get_running_loop()
            generation.timer = loop.call_later(request.timeout_s, self._expire, generation)
        order = Request(
            request_id=generation.engine_id,
            token_ids=token_ids,
            prompt_tokens=prompt_tokens,
            max_tokens=request.max_tokens,
            root=self._hasher.root(request.model, request.cache_namespace),
            sampling=sampling,
            remote=self._remote is not None and self._remote.wants(request, prompt_tokens),
            cached_only=request.prefill.cached_only,
            priority=request.priority,
            tenant=request.tenant,
            keep_s=request.keep_s,
        )
        if request.HasField("grammar"):
            self._spawn(self._submit_bound(generation, order))
        else:
            self._engine.submit(order)
        return generation

    async def _submit_bound(self, generation: Generation, order: Request) -> None:
        """Submit a request once its grammar is compiled, if it is still wanted then."""
        self._compiling += 1
        try:
            compiled = await self._engine.compile(generation.request.grammar)
        except ValueError as error:
            self._end(generation, FinishReason.ERROR, WorkerError.CODE_INVALID, f"grammar: {error}")
            self._forget(generation, FinishReason.ERROR)
            return
        finally:
            self._compiling -= 1
        if generation.has_ended:
            self._forget(generation, FinishReason.CANCELLED)
        else:
            self._engine.submit(replace(order, grammar=compiled))

    def _tell(self, generation: Generation, stream: ClientStream, output: TokenOutput) -> None:
        reason = output.finish_reason
        delta = stream.tokens.put(
            generation.stream_id,
            output.output_index,
            output.token_ids,
            common.FINISH_REASON_UNSPECIFIED if reason is None else FINISH_REASONS[reason],
        )
        generation.next_index = output.output_index + len(output.token_ids)
        if output.logprobs:
            delta.logprobs.extend([logprobs_of(logprobs) for logprobs in output.logprobs])
        if output.prompt_logprobs is not None:
            delta.prompt_logprobs.CopyFrom(prompt_logprobs_of(output.prompt_logprobs))
        if generation.cached_tokens < 0 and output.token_ids:
            self._describe(generation, output.cached_tokens, delta.info)
        if reason is FinishReason.ERROR:
            delta.error.code, delta.error.message = code_of(output.error), output.error
        if reason is not None:
            self._detach(generation)
        elif stream.tokens.is_full:
            metrics.slow_readers.inc()
            self.cancel_all(stream)

    def _describe(self, generation: Generation, cached_tokens: int, info: common.ServingInfo) -> None:
        """How the request is served; told with its first token."""
        generation.cached_tokens = cached_tokens
        info.decode_worker = self._member_id
        info.cached_tokens = cached_tokens
        report = generation.report
        if report is not None and report.blocks:
            self._describe_source(generation.request.prefill, report, info)
            info.transferred_tokens = report.blocks * self._engine.info.block_size
            info.transferred_bytes = report.size_bytes
            info.transport = report.transport
            info.transfer_s = report.reading_s
        onboarding = report if isinstance(report, OnboardReport) else generation.onboarding
        if onboarding is not None:
            onboarding.describe(info, self._engine.info.block_size)
        metrics.cached_tokens.inc(cached_tokens)

    def _describe_source(
        self, target: PrefillTarget, report: FetchReport | OnboardReport, info: common.ServingInfo
    ) -> None:
        if target.cached_only:
            info.pull_worker = target.worker_id
            info.prefill_cached_tokens = info.cached_tokens + report.blocks * self._engine.info.block_size
        if isinstance(report, FetchReport) and not target.cached_only:
            info.prefill_worker = target.worker_id
            info.prefill_cached_tokens = report.prefill_cached_tokens
            info.onboarded.extend(report.onboarded)
            info.onboard_s = report.onboard_s

    def _expire(self, generation: Generation) -> None:
        text = f"{generation.request.timeout_s:g} s have passed"
        self._end(generation, FinishReason.ERROR, WorkerError.CODE_DEADLINE_EXCEEDED, text)

    def _end(
        self,
        generation: Generation,
        reason: FinishReason,
        code: "WorkerError.Code.ValueType" = WorkerError.CODE_UNSPECIFIED,
        error: str = "",
    ) -> None:
        """End a request for its client now, and its work as soon as that is safe."""
        stream = generation.stream
        if stream is None:
            return
        delta = stream.tokens.put(generation.stream_id, generation.next_index, (), FINISH_REASONS[reason])
        if error:
            delta.error.code, delta.error.message = code, error
        self._detach(generation)
        if generation.fetching is not None:
            generation.fetching.cancel()  # and then aborted, see `_fetch`
        else:
            self._engine.abort(generation.engine_id)
            if self._remote is not None:
                self._remote.cancel(generation.engine_id)

    def _detach(self, generation: Generation) -> None:
        if generation.stream is not None:
            del generation.stream.live[generation.stream_id]
            generation.stream = None
        if generation.timer is not None:
            generation.timer.cancel()

    def _forget(self, generation: Generation, reason: FinishReason) -> None:
        del self._all[generation.engine_id]
        metrics.requests.labels(reason.value).inc()
        generation.span.set_attribute("finish_reason", reason.value)
        generation.span.set_attribute("output_tokens", generation.next_index)
        generation.span.end()
        self._ended.fire()
