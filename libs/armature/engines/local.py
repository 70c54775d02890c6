"""An engine in this process: a thread that schedules, computes and tells the event loop what came of it.

The thread owns scheduler, block pool and runner; the event loop only puts commands in its inbox and gets finished step
outputs. The thread sleeps when there is nothing to compute and never runs more than a few steps ahead of the loop.

When a step raises, its requests are tried one by one, and the one at fault ends with ERROR; the engine goes on. An
error of the engine itself (not of the runner's step) ends every request with ERROR, and all that come later: its state
can no longer be trusted.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from armature.blocks.hashing import BlockHasher
from armature.blocks.pool import BlockPool
from armature.engines.engine import BlockMemory, EngineInfo
from armature.engines.queue_times import QueueTimes
from armature.engines.runner import Runner
from armature.index.tiers import Tier
from armature.performance.fit import StepFit
from armature.performance.shape import shape_of
from armature.scheduling.limits import Limits
from armature.scheduling.lower_tiers import LowerTiers, TierChange, TierSpeed
from armature.scheduling.offloading import OffloadTiming
from armature.scheduling.plan import SampledToken, StepPlan
from armature.scheduling.request import EngineLoad, FinishReason, Request, StepOutput, TokenOutput
from armature.scheduling.scheduler import Scheduler
from armature.v1.common_pb2 import Grammar

logger = logging.getLogger(__name__)

# Outputs on their way to the loop. Enough to compute through a short stall of the loop; more would only hide from the
# engine that nobody keeps up with it.
_STEPS_AHEAD = 4


class LocalEngine:
    """`Engine` over a `Runner`, in a thread of its own.

    Raises:
        ValueError: the hasher's block size is not the runner's, or the limits contradict each other.
    """

    def __init__(
        self, runner: Runner, hasher: BlockHasher, *, max_waiting: int = 1024, offload: OffloadTiming | None = None
    ) -> None:
        """`offload`: blocks are offered to tiers below the device, and looked for there; None: there are none."""
        info = runner.info
        if hasher.block_size != info.block_size:
            raise ValueError(f"the hasher's block size is {hasher.block_size}, the runner's {info.block_size}")
        self._runner = runner
        limits = Limits(
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            context_length=info.context_length,
            vocab_size=info.vocab_size,
            eos_token_ids=info.eos_token_ids,
            max_waiting=max_waiting,
        )
        self._fit = StepFit()
        self._lower = LowerTiers(
            self._fit,
            block_size=info.block_size,
            block_bytes=info.block_bytes,
            chunk_tokens=info.max_num_batched_tokens,
        )
        lower = self._lower if offload else None
        self._scheduler = Scheduler(limits, BlockPool(info.num_blocks), hasher, lower, offload)
        self._queue = QueueTimes()
        self._failed_steps = 0
        self._free_since_s = 0.0
        """When the thread had last computed all that it had, or was woken."""
        self._last_load = EngineLoad()
        # Holds what comes during one step: it is emptied before the next, and requests beyond `max_waiting` end then.
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wake = threading.Event()
        self._ahead = threading.Semaphore(_STEPS_AHEAD)
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._on_step: Callable[[StepOutput], None] | None = None

    @property
    def info(self) -> EngineInfo:
        return self._runner.info

    @property
    def memory(self) -> BlockMemory:
        return self._runner.memory

    async def start(self, on_step: Callable[[StepOutput], None]) -> None:
        """Start the thread; see `Engine.start`."""
        assert self._thread is None, "an engine is started once"
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._on_step = on_step
        # A daemon, so that a process whose loop has died is not kept alive by its engine.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Wait for the current step, then end the thread; see `Engine.stop`."""
        if self._thread is None or self._ended is None:
            return
        self._stopping = True
        self._wake.set()
        await asyncio.shield(self._ended)
        self._thread.join()

    async def compile(self, grammar: Grammar) -> object | None:
        return await asyncio.to_thread(self._runner.compile, grammar)

    def submit(self, request: Request) -> None:
        self._queue.submitted(request.request_id, perf_counter())
        self._send(self._scheduler.submit, request)

    def abort(self, request_id: str) -> None:
        self._send(self._scheduler.abort, request_id)

    def land(self, request_id: str, num_blocks: int) -> None:
        self._send(self._scheduler.land, request_id, num_blocks)

    def finish_remote(self, request_id: str, num_blocks: int, quarantined: Sequence[int] = ()) -> None:
        self._send(self._scheduler.finish_remote, request_id, num_blocks, quarantined)

    def unquarantine(self, block_ids: Sequence[int]) -> None:
        self._send(self._scheduler.unquarantine, block_ids)

    def stop_prefill(self, request_id: str) -> None:
        self._send(self._scheduler.stop_prefill, request_id)

    def release(self, request_id: str, up_to_block: int | None = None) -> None:
        self._send(self._scheduler.release, request_id, up_to_block)

    def offloaded(self, run_id: int) -> None:
        self._send(self._scheduler.offloaded, run_id)

    def tell_below(self, changes: Sequence[TierChange]) -> None:
        self._send(self._lower.apply, changes)

    def tell_speed(self, tier: Tier, speed: TierSpeed) -> None:
        self._send(self._lower.measured, tier, speed)

    def clear_cache(self) -> None:
        """Forget all cached content; running requests go on."""
        self._send(self._scheduler.clear_cache)

    def _send(self, command: Callable[..., None], *args: object) -> None:
        self._inbox.append((command, args))
        self._wake.set()

    # --- the engine's thread, from here on

    def _run(self) -> None:
        self._free_since_s = perf_counter()
        try:
            while not self._stopping:
                self._turn()
        except Exception as error:
            logger.exception("the engine has failed and serves no request any more")
            self._refuse_all(f"the engine has failed: {type(error).__name__}: {error}")
        finally:
            self._call_loop(self._end)

    def _turn(self) -> None:
        self._take_in()
        scheduler = self._scheduler
        plan = scheduler.schedule()
        opened = scheduler.take_opened()
        if opened:
            self._runner.open_blocks(opened)
        if plan is None:
            self._post(even_if_silent=False)
            self._runner.rest()
            self._wake.wait()
            # Cleared before the inbox is read: a command that comes in between is read, or wakes the next wait.
            self._wake.clear()
            self._free_since_s = perf_counter()
            return
        if scheduler.has_news:
            # A reservation must not wait for a step: its blocks can travel while the step is computed.
            self._post()
        self._step(plan)
        # What came during a long step belongs into the load that is told after it: placement counts on that.
        self._take_in()
        self._post()

    def _take_in(self) -> None:
        while self._inbox:
            command, args = self._inbox.popleft()
            command(*args)

    def _step(self, plan: StepPlan) -> None:
        # Planning and telling are part of what a step takes: a stream's next token has to wait for them too.
        started_s = self._free_since_s
        self._queue.began(plan, perf_counter())
        try:
            sampled = self._compute(plan)
        except Exception as error:
            self._failed_steps += 1
            logger.exception("step failed (%d in a row)", self._failed_steps)
            self._scheduler.fail(plan, f"step failed: {type(error).__name__}: {error}")
            return
        finally:
            self._free_since_s = perf_counter()
        elapsed_s = self._free_since_s - started_s
        self._failed_steps = 0
        self._fit.observe(shape_of(plan), elapsed_s)
        self._scheduler.complete(plan, sampled)

    def _compute(self, plan: StepPlan) -> Sequence[SampledToken]:
        sampled = self._runner.execute(plan)
        if len(sampled) != plan.num_samples:
            raise RuntimeError(f"the runner returned {len(sampled)} tokens for {plan.num_samples} slices that sample")
        return sampled

    def _post(self, *, even_if_silent: bool = True) -> None:
        load = self._scheduler.load(self._fit, self._failed_steps)
        output = self._scheduler.take(load)
        self._queue.told(output, perf_counter())
        for request_id in self._scheduler.take_left():
            self._runner.forget(request_id)
            self._queue.forget(request_id)
        is_silent = load == self._last_load and output == StepOutput(load=load)
        if even_if_silent or not is_silent:
            self._last_load = load
            self._deliver_soon(output)

    def _refuse_all(self, error: str) -> None:
        self._scheduler.fail_all(error)
        self._deliver_soon(self._scheduler.take(EngineLoad(failed_steps_in_a_row=self._failed_steps + 1)))
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            refused: list[TokenOutput] = []
            while self._inbox:
                command, args = self._inbox.popleft()
                if command == self._scheduler.submit:
                    refused.append(TokenOutput(args[0].request_id, 0, (), FinishReason.ERROR, error=error))
            if refused:
                self._deliver_soon(StepOutput(tokens=tuple(refused), load=self._last_load))

    def _deliver_soon(self, output: StepOutput) -> None:
        self._ahead.acquire()
        self._call_loop(self._deliver, output)

    def _call_loop(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop is closed: nobody is left to compute for.
            self._stopping = True

    # --- back on the event loop

    def _deliver(self, output: StepOutput) -> None:
        assert self._on_step is not None
        self._ahead.release()
        self._on_step(output)

    def _end(self) -> None:
        assert self._ended is not None
        if not self._ended.done():
            self._ended.set_result(None)
