"""vLLM under the contract of engines.

vLLM schedules and computes in processes of its own; here, on the event loop, are one task for each request and the
feeds of its state. Everything that comes in one turn of the loop is told in one step: vLLM hands out the tokens of one
of its steps together. When vLLM dies, every request ends with ERROR, and so do all that come later.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from armature.blocks.events import KvEvent
from armature.engines.engine import EngineInfo
from armature.engines.vllm.grammars import lark_of
from armature.engines.vllm.kv_events import salt_of
from armature.engines.vllm.kv_feed import KvFeed
from armature.engines.vllm.load import LoadBook
from armature.engines.vllm.outputs import token_output
from armature.engines.vllm.sampling import UnfollowableError, sampling_fields
from armature.engines.vllm.surface import Stats, Vllm
from armature.scheduling.request import EngineLoad, FinishReason, Request, StepOutput, TokenOutput
from armature.v1.common_pb2 import Grammar

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 1.0
"""Between looks at whether an idle vLLM still lives; a busy one's death is told at once."""

MakeParams = Callable[[dict[str, Any], str | None], Any]
"""vLLM's `SamplingParams` of these fields, for an answer that matches this grammar."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A vLLM that is up, and what is known of it."""

    vllm: Vllm
    info: EngineInfo
    make_params: MakeParams
    feed: KvFeed
    stats: "StatsRelay"
    folder: TemporaryDirectory[str]
    """Where the sockets of its events are."""
    refusals: tuple[type[Exception], ...]
    """What it raises for a request that it can't serve."""


class StatsRelay:
    """Between vLLM, which wants to know at its start whom to tell, and the engine, which comes later."""

    def __init__(self) -> None:
        self.listener: Callable[[Stats], None] = lambda _: None


@dataclass(slots=True, eq=False)
class _Live:
    """A request that has not ended."""

    request: Request
    next_index: int
    task: asyncio.Task[None] | None = None
    is_aborted: bool = False


class VllmEngine:
    """`Engine` over vLLM. It keeps its blocks to itself."""

    def __init__(self, launched: Launched, *, max_waiting: int = 1024) -> None:
        self._launched = launched
        self._vllm = launched.vllm
        self._max_waiting = max_waiting
        self._book = LoadBook(launched.info.num_blocks)
        self._live: dict[str, _Live] = {}
        self._tokens: list[TokenOutput] = []
        self._kv_events: list[KvEvent] = []
        self._is_telling = False
        self._is_dead = False
        self._is_stopping = False
        self._on_step: Callable[[StepOutput], None] | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def info(self) -> EngineInfo:
        return self._launched.info

    async def start(self, on_step: Callable[[StepOutput], None]) -> None:
        """See `Engine.start`; vLLM itself is up already."""
        assert self._running is None, "an engine is started once"
        self._on_step = on_step
        self._launched.stats.listener = self._on_stats
        is_up = asyncio.Event()
        self._running = asyncio.create_task(self._run(is_up), name="vllm")
        self._running.add_done_callback(self._on_end)
        await is_up.wait()

    async def stop(self) -> None:
        """See `Engine.stop`."""
        self._is_stopping = True
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
                await self._running
        self._vllm.shutdown()
        self._launched.folder.cleanup()

    async def compile(self, grammar: Grammar) -> object | None:
        return await asyncio.to_thread(lark_of, grammar)

    def submit(self, request: Request) -> None:
        if self._book.waiting_prompts >= self._max_waiting:
            self._refuse(request, f"queue full: {self._book.waiting_prompts} requests wait")
            return
        assert self._tasks is not None, "the engine has not been started"
        live = _Live(request, len(request.token_ids) - request.prompt_tokens)
        self._live[request.request_id] = live
        self._book.submitted(request.request_id, len(request.token_ids))
        live.task = self._tasks.create_task(self._answer(live), name=f"vllm {request.request_id}")
        self._tell_soon()

    def abort(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is not None and not live.is_aborted:
            # A task that is cancelled before it began would never come to its end.
            live.is_aborted = True
            if live.task is not None:
                asyncio.get_running_loop().call_soon(live.task.cancel)

    # --- one request

    async def _answer(self, live: _Live) -> None:
        request = live.request
        try:
            fields = sampling_fields(request, self.info.eos_token_ids)
            params = self._launched.make_params(fields, request.grammar if isinstance(request.grammar, str) else None)
            prompt = {
                "type": "token",
                "prompt_token_ids": list(request.token_ids),
                "cache_salt": salt_of(request.root),
            }
            generating = self._vllm.generate(prompt, params, request.request_id, priority=-request.priority)
            async with aclosing(generating):
                async for output in generating:
                    self._take(live, token_output(request, output, live.next_index))
            self._end(live, FinishReason.ERROR, "vLLM has ended the request without a reason")
        except asyncio.CancelledError:
            if self._is_stopping:
                raise
            self._end(live, FinishReason.CANCELLED)
        except (UnfollowableError, *self._launched.refusals) as error:
            kind = "invalid" if isinstance(error, UnfollowableError) or request.grammar is None else "grammar"
            self._end(live, FinishReason.ERROR, f"{kind}: {error}")
        except Exception as error:
            log.exception("vLLM has failed on %s", request.request_id)
            self._end(live, FinishReason.ERROR, f"vLLM has failed: {type(error).__name__}: {error}")
            self._look()

    def _take(self, live: _Live, output: TokenOutput) -> None:
        live.next_index += len(output.token_ids)
        if output.token_ids or output.finish_reason is not None:
            self._tell(output)

    def _end(self, live: _Live, reason: FinishReason, error: str = "") -> None:
        if live.request.request_id in self._live:
            self._tell(TokenOutput(live.request.request_id, live.next_index, (), reason, error=error))

    def _refuse(self, request: Request, error: str) -> None:
        index = len(request.token_ids) - request.prompt_tokens
        self._tokens.append(TokenOutput(request.request_id, index, (), FinishReason.ERROR, error=error))
        self._tell_soon()

    # --- what is told

    def _tell(self, output: TokenOutput) -> None:
        if output.request_id not in self._live:
            return
        if output.finish_reason is not None:
            del self._live[output.request_id]
        self._book.told(output)
        self._tokens.append(output)
        self._tell_soon()

    def _on_stats(self, stats: Stats) -> None:
        self._book.stepped(stats)
        self._tell_soon()

    def _on_kv_events(self, events: Sequence[KvEvent]) -> None:
        self._kv_events += events
        self._tell_soon()

    def _tell_soon(self) -> None:
        """Once, after everybody who is about to run has added what it has."""
        if not self._is_telling and not self._is_stopping:
            self._is_telling = True
            asyncio.get_running_loop().call_soon(self._tell_all)

    def _tell_all(self) -> None:
        self._is_telling = False
        if self._is_stopping:
            return
        assert self._on_step is not None
        # A dead engine says so by a pool without blocks.
        load = EngineLoad(failed_steps_in_a_row=1) if self._is_dead else self._book.load(len(self._launched.feed))
        output = StepOutput(tokens=tuple(self._tokens), kv_events=tuple(self._kv_events), load=load)
        self._tokens, self._kv_events = [], []
        self._on_step(output)

    # --- its life

    async def _run(self, is_up: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as self._tasks:
            self._tasks.create_task(self._launched.feed.run(self._on_kv_events), name="vllm kv events")
            self._tasks.create_task(self._watch(), name="vllm watch")
            is_up.set()
            self._tell_soon()

    def _on_end(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled() and (error := running.exception()) is not None:
            log.error("the adapter of vLLM has failed", exc_info=error)
            self._is_dead = True
            self._tell_soon()

    async def _watch(self) -> None:
        while not self._is_dead:
            await asyncio.sleep(WATCH_INTERVAL_S)
            self._look()

    def _look(self) -> None:
        """Tell once if vLLM computes nothing any more."""
        if self._vllm.errored and not self._is_dead:
            log.error("vLLM is dead")
            self._is_dead = True
            self._tell_soon()
