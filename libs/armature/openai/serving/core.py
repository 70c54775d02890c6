"""What all surfaces share: models, placement, workers, and the way from an `Ask` to its answer."""

import asyncio
import logging
import math
import secrets
import time
from array import array
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from armature.blocks.hashing import BlockDigest
from armature.openai.errors import ApiError, context_exceeded, deadline_exceeded, invalid, no_workers, overloaded
from armature.openai.forced_calls import calls_or_answer, forced_calls, strict_calls
from armature.openai.parsers.families import Reading
from armature.openai.prompt_scores import check_scores
from armature.openai.rules import Ask, ChatPrompt, TextPrompt, TokenPrompt, check_against_model, check_token_ids
from armature.openai.serving.backlog import Backlog
from armature.openai.serving.catalog import ModelCatalog, ServedModel
from armature.openai.serving.choices import Choices
from armature.openai.serving.embedder import Embedder
from armature.openai.serving.generation import Generation
from armature.openai.serving.http.bodies import BodyRoom
from armature.openai.serving.job import Job
from armature.openai.serving.local_router import LocalRouter
from armature.openai.serving.metrics import INFLIGHT, PREPARE_S
from armature.openai.serving.next_turns import NextTurns
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.router_client import RouterClient
from armature.openai.serving.texts import Texts
from armature.openai.serving.worker_streams import WorkerStreams
from armature.openai.serving.write_watch import WriteWatch
from armature.openai.structured import check_grammar
from armature.openai.tenancy.admission import ASSUMED_ANSWER_TOKENS, Admission, begin, current_admission
from armature.openai.tenancy.doorkeeper import Doorkeeper
from armature.openai.tenancy.quotas import Quotas
from armature.openai.tools import no_tool_format
from armature.routing.hints import MAX_TTFT_TARGET_S, Hints
from armature.runtime.channels import ChannelPool
from armature.runtime.lingering import Lingering
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import Grammar

log = logging.getLogger(__name__)


class ServingCore:
    """One per gateway. Tell it about members (decode, aggregated and prefill workers, routers) as they come and go."""

    def __init__(
        self,
        own_id: str,
        channels: ChannelPool,
        tasks: asyncio.TaskGroup,
        *,
        secret: bytes,
        options: ServingOptions | None = None,
        tokenizers: Mapping[str, Path] | None = None,
    ) -> None:
        self.options = options or ServingOptions()
        self.tasks = tasks
        """Owns what is done besides answering requests."""
        self.bodies = BodyRoom(self.options.max_body_bytes_in_all)
        self.catalog = ModelCatalog(tasks, secret, self.options, tokenizers or {})
        self._planners = Lingering(lambda change: self.catalog.member_changed(change, time.time()))
        self.doorkeeper = Doorkeeper()
        """Finds out who is calling; everybody may, until it is given keys."""
        self.quotas = Quotas(own_id, "", None)
        """Holds tenants to their limits; alone, until it is replaced by one that knows of other gateways."""
        self.writes = WriteWatch(self.options.write_timeout_s)
        tasks.create_task(self.writes.run(), name="slow clients")
        self._local_router = LocalRouter()
        self._router = RouterClient(own_id, channels, tasks, self._local_router, self.options)
        self._workers = WorkerStreams(channels, tasks, self.options)
        self.texts = Texts(self, Embedder(self._router, channels, self.options))
        self._next_turns = NextTurns(self._router, self._workers, tasks, self.options)
        self.on_end: list[Callable[[Generation], None]] = []
        """Called with every generation that has ended, however."""
        self._inflight = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._now_s = asyncio.get_running_loop().time

    @property
    def is_ready(self) -> bool:
        """Whether a request could be served now."""
        return not self._is_draining and bool(self.catalog.served())

    @property
    def inflight(self) -> int:
        return self._inflight

    def member_changed(self, change: MemberChange) -> None:
        """Somebody has come, changed or left."""
        if change.member.kind == "planner":
            self._planners(change)
        else:
            self.catalog.member_changed(change, time.time())
        self._local_router.member_changed(change)
        self._router.member_changed(change)
        self._workers.member_changed(change)

    def check_open(self) -> None:
        """Raise 503 if the gateway is draining, 429 if all places are taken."""
        if self._is_draining:
            raise ApiError(503, "This gateway is shutting down; try again", code="draining", retry_after_s=1.0)
        if self._inflight >= self.options.max_concurrent_requests:
            raise overloaded(f"{self._inflight} requests are being served already; try again later")

    @contextmanager
    def admitted(self, timeout_s: float | None = None) -> Generator[None, None, None]:
        """A place among the requests that are served at the same time, to be taken before anything costly, and when
        nothing more is awaited of the client.

        `timeout_s` is how long the client waits for its answer, if it says so.

        Raises:
            ApiError: 429 if all are taken or the tenant can't send requests now, 503 if the gateway is draining.
            LookupError: nobody has found out who is calling.
        """
        self.check_open()
        patience_s = math.inf if timeout_s is None else timeout_s
        admission = begin(self.doorkeeper.caller(), self.quotas, patience_s)
        self._inflight += 1
        INFLIGHT.inc()
        self._idle.clear()
        try:
            yield
        finally:
            admission.close()
            self._inflight -= 1
            INFLIGHT.dec()
            if not self._inflight:
                self._idle.set()

    async def drain(self) -> None:
        """Take nothing new and wait for what is there; the caller bounds the wait."""
        self._is_draining = True
        await self._idle.wait()

    async def prepare(self, request_id: str, ask: Ask, received_s: float, traceparent: str = "") -> Job:
        """Check the current caller's request against its model, tokenize and hash it.

        Raises:
            ApiError: the request can't be served.
            LookupError: it was not admitted.
        """
        (job,) = await self.prepare_all(request_id, [ask], received_s, traceparent)
        return job

    async def prepare_all(
        self, request_id: str, asks: Sequence[Ask], received_s: float, traceparent: str = ""
    ) -> list[Job]:
        """Like `prepare` for all prompts of one request, which are charged together."""
        admission = self.admission()
        budget_s = min(self.options.request_timeout_s, admission.timeout_s)
        due_s = received_s + budget_s
        jobs: list[Job] = []
        tokens = 0
        try:
            async with asyncio.timeout_at(due_s):
                for place, ask in enumerate(asks):
                    own_id = f"{request_id}p{place}" if place else request_id
                    jobs.append(job := await self._job(own_id, ask, admission, received_s, due_s, traceparent))
                    tokens += len(job.prompt) + ask.num_answers * _likely_tokens(ask, job.max_tokens)
                await admission.charge(tokens)
        except TimeoutError:
            raise deadline_exceeded(f"The request was not even read within {budget_s:g} s") from None
        return jobs

    async def _job(
        self, request_id: str, ask: Ask, admission: Admission, received_s: float, due_s: float, traceparent: str
    ) -> Job:
        caller, sampling = admission.caller, ask.sampling
        model = (await self.model_named(ask.model)).within(caller.cache_namespace)
        prompt, digests, reading = await self._encoded(model, ask)
        room = model.card.context_length - len(prompt)
        max_tokens = room if ask.max_tokens is None else min(ask.max_tokens, room)
        if sampling.HasField("prompt_logprobs"):
            check_scores(ask.prompt_field, len(prompt), sampling.prompt_logprobs)
        sampling.min_tokens = min(sampling.min_tokens, max_tokens)
        if not sampling.HasField("seed"):
            sampling.seed = secrets.randbits(63)
        return Job(
            request_id=request_id,
            model=model,
            prompt=prompt,
            digests=digests,
            reading=reading,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=ask.stop,
            include_info=ask.include_info,
            session_id=ask.session_id,
            hints=_in_time(ask.hints, admission.timeout_s),
            num_answers=ask.num_answers,
            grammar=await _grammar(model, ask, reading),
            chat=ask.prompt if ask.hints.speculative_prefill and isinstance(ask.prompt, ChatPrompt) else None,
            tenant=caller.tenant,
            cache_namespace=caller.cache_namespace,
            admission=admission,
            received_s=received_s,
            due_s=due_s,
            traceparent=traceparent,
        )

    async def count_tokens(self, ask: Ask) -> int:
        """How many tokens the prompt has; nothing is charged for that.

        Raises:
            ApiError: the request could not be served.
            LookupError: it was not admitted.
        """
        namespace = self.admission().caller.cache_namespace
        prompt, _, _ = await self._encoded((await self.model_named(ask.model)).within(namespace), ask)
        return len(prompt)

    async def _encoded(self, model: ServedModel, ask: Ask) -> "tuple[array[int], list[BlockDigest], Reading | None]":
        check_against_model(ask.sampling, ask.max_tokens, model.card.vocab_size)
        if ask.grammar is not None:
            await check_grammar(ask.grammar, ask.grammar_field)
        _check_tools(model, ask)
        started_s = self._now_s()
        characters = _characters(ask)
        if characters * model.tokenizer.seconds_per_character > self.options.inline_tokenize_s:
            encoded = await asyncio.to_thread(_tokenize_timed, model, ask, characters)
        else:
            encoded = _tokenize_timed(model, ask, characters)
        PREPARE_S.observe(self._now_s() - started_s)
        return encoded

    def choices(self, *jobs: Job) -> Choices:
        """All answers that the jobs ask for."""
        backlog = Backlog(self.options.max_buffered_bytes)
        return Choices(
            [self.generation(job.for_answer(index), backlog) for job in jobs for index in range(job.num_answers)]
        )

    def generation(self, job: Job, backlog: Backlog | None = None) -> Generation:
        """One answer; with the `backlog` of those that go to the same client."""
        if backlog is None:
            backlog = Backlog(self.options.max_buffered_bytes)
        return Generation(job, self._router, self._workers, self.options, self._ended, backlog)

    def _ended(self, generation: Generation) -> None:
        if generation.job.admission is not None:
            usage = generation.usage
            prompt_tokens = 0 if generation.job.answer_index else usage.prompt_tokens
            generation.job.admission.used(prompt_tokens + usage.completion_tokens)
        if not self._is_draining:
            self._next_turns.ended(generation)
        for listener in self.on_end:
            listener(generation)

    def admission(self) -> Admission:
        """Of the request that the current task serves.

        Raises:
            LookupError: it was not admitted.
        """
        admission = current_admission()
        if admission is not None:
            return admission
        caller = self.doorkeeper.caller()
        if caller.limits:
            raise LookupError("a request of a tenant with limits is being served without having been admitted")
        return Admission(caller, self.quotas)

    async def model_named(self, name: str) -> ServedModel:
        """A model that is served, as soon as it can be.

        Raises:
            ApiError: 404, 503.
        """
        if (model := self.catalog.loaded(name)) is not None:
            return model
        try:
            async with asyncio.timeout(self.options.first_token_timeout_s):
                return await self.catalog.get(name)
        except TimeoutError:
            raise no_workers(f"The tokenizer of the model '{name}' is still being loaded", retry_after_s=5.0) from None


def _check_tools(model: ServedModel, ask: Ask) -> None:
    """Raise unless the model can call functions, if there are any."""
    if ask.tools.parameters and not model.format.has_tools:
        raise no_tool_format(model.name)
    if ask.tools.must_call and ask.sampling.min_tokens:
        raise invalid("min_tokens", "not possible with calls that must be made, which say themselves when they end")


async def _grammar(model: ServedModel, ask: Ask, reading: Reading | None) -> Grammar | None:
    """What the answer must match: the client's, which has been checked, calls that must be made, or either.

    An answer that may be anything has strict functions called as they are declared.
    """
    if reading is None or not ask.tools.parameters:
        return ask.grammar
    how = (ask.tools, reading, model.tokenizer.vocabulary, model.tokenizer.template_source)
    if ask.tools.must_call:  # then there is no other answer
        grammar = forced_calls(*how)
    elif ask.grammar is None:
        grammar = strict_calls(*how)
        if grammar is None:
            return None
    else:
        grammar = calls_or_answer(*how, ask.grammar)
    if grammar is None:
        raise invalid(
            ask.grammar_field, 'this model could not call then; leave out tools, or set tool_choice to "none"'
        )
    await check_grammar(grammar, "tools")
    return grammar


def _likely_tokens(ask: Ask, max_tokens: int) -> int:
    """How long the answer will be, before anybody knows."""
    if ask.max_tokens is not None:
        return max_tokens
    return min(max_tokens, ask.hints.expected_output_tokens or ASSUMED_ANSWER_TOKENS)


def _in_time(hints: Hints, timeout_s: float) -> Hints:
    """A first token that comes when the client has given up is of no use: the router need not wait so long."""
    if not 0 < timeout_s < (hints.ttft_target_s or MAX_TTFT_TARGET_S):
        return hints
    return replace(hints, ttft_target_s=timeout_s)


def _characters(ask: Ask) -> int:
    """About how much there is to tokenize."""
    prompt = ask.prompt
    if isinstance(prompt, TextPrompt):
        return len(prompt.text)
    if isinstance(prompt, TokenPrompt):
        return len(prompt.token_ids)
    return sum(len(message["content"]) for message in prompt.messages)


def _tokenize_timed(
    model: ServedModel, ask: Ask, characters: int
) -> "tuple[array[int], list[BlockDigest], Reading | None]":
    began_s = time.thread_time()
    encoded = _tokenize(model, ask)
    model.tokenizer.took(characters, time.thread_time() - began_s)
    return encoded


def _tokenize(model: ServedModel, ask: Ask) -> "tuple[array[int], list[BlockDigest], Reading | None]":
    """The prompt's tokens, the digests of its whole blocks, and how to read its answer. May run on a thread."""
    prompt, card, name = ask.prompt, model.card, ask.prompt_field
    digests: list[BlockDigest] | None = None
    reading: Reading | None = None
    if isinstance(prompt, TokenPrompt):
        if len(prompt.token_ids) >= card.context_length:
            raise context_exceeded(name, len(prompt.token_ids), card.context_length)
        check_token_ids(name, prompt.token_ids, card.vocab_size)
        token_ids = array("I", prompt.token_ids)
    else:
        assert isinstance(prompt, (TextPrompt, ChatPrompt))
        text = model.tokenizer.text_of(card.name, prompt)
        # Where there are no calls, all of the text matches a grammar.
        if isinstance(prompt, ChatPrompt) and (ask.grammar is None or ask.tools.parameters):
            reading = model.format.reading(ask.tools.parameters, text, is_parallel=ask.tools.is_parallel)
        # Tokenizing megabytes takes seconds and a hundred times the memory, to no end if the context can't hold them.
        if len(text) > card.context_length and (least := model.tokenizer.least_tokens(text)) >= card.context_length:
            raise context_exceeded(name, least, card.context_length, at_least=True)
        if isinstance(prompt, ChatPrompt):
            token_ids, digests = model.prompts.encode(model.root, text)
        else:
            token_ids = model.tokenizer.encoder.encode(text, add_special_tokens=True)
        if model.tokenizer.vocab_size > card.vocab_size and max(token_ids, default=0) >= card.vocab_size:
            raise invalid(name, "it has special tokens that this model does not know")
    if not token_ids:
        raise invalid(name, "it has no tokens")
    if len(token_ids) >= card.context_length:
        raise context_exceeded(name, len(token_ids), card.context_length)
    return token_ids, model.hasher.extend(model.root, token_ids) if digests is None else digests, reading
