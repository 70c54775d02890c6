"""A worker without a model: the real scheduler over a real block pool, its steps timed by a performance model.

A trace of an hour is more than a million steps, too many to plan one by one in Python (some 40 µs each). But most are
alike: the same answers grow by a token each, nobody is let in, nobody ends, no block is opened or sealed. Such a
stretch is planned once and completed at its end; whatever comes in between cuts it short after the step that is being
computed. What the scheduler decides is the same as step by step, which a test holds against `stretches=False`.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from armature.blocks.events import KvEvent
from armature.blocks.hashing import BlockHasher
from armature.blocks.pool import BlockPool
from armature.performance.fit import StepFit
from armature.performance.linear import LinearModel
from armature.performance.shape import shape_of
from armature.performance.step import PerformanceModel, StepShape
from armature.scheduling.limits import Limits
from armature.scheduling.lower_tiers import LowerTiers
from armature.scheduling.plan import StepPlan
from armature.scheduling.request import EngineLoad, Request, StepOutput
from armature.scheduling.scheduler import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShape:
    """What every worker of a simulated cell is.

    Raises:
        ValueError: a number is below 1.
    """

    block_size: int
    num_blocks: int
    """Blocks that can be handed out."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(slots=True)
class _Stretch:
    """What is being computed: `num_steps` steps like `plan`."""

    plan: StepPlan
    started_s: float
    num_steps: int
    shape: StepShape
    """Of the first step."""
    ends_s: float

    @property
    def middle(self) -> StepShape:
        """A step that takes what all take in the mean."""
        num_decodes, context_tokens, prefill_tokens, pairs = self.shape
        grown = num_decodes * (self.num_steps - 1) // 2
        return StepShape(num_decodes, context_tokens + grown, prefill_tokens, pairs)


class SimulatedWorker:
    """Submit requests, `begin` when idle, `end` at the time that `begin` or `cut` gave.

    Other commands that come while a step is computed take effect when it ends, as in a live engine, unless they
    touch nothing that is in a step.
    """

    def __init__(
        self,
        shape: WorkerShape,
        hasher: BlockHasher,
        performance: PerformanceModel,
        *,
        stretches: bool = True,
        lower_block_bytes: int = 0,
    ) -> None:
        """`lower_block_bytes`: of a block, if there are tiers below the device; 0: there are none."""
        self.pool = BlockPool(shape.num_blocks + 1)
        limits = Limits(
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=max(shape.max_num_batched_tokens, shape.max_num_seqs),
            context_length=1 << 31,
            vocab_size=1 << 32,
            max_waiting=1 << 31,
        )
        self._performance = performance
        self._fit = StepFit()
        self._lower = None
        if lower_block_bytes:
            chunk_tokens, block_size = limits.max_num_batched_tokens, shape.block_size
            self._lower = LowerTiers(
                self._fit, block_size=block_size, block_bytes=lower_block_bytes, chunk_tokens=chunk_tokens
            )
        self._scheduler = Scheduler(limits, self.pool, hasher, self._lower)
        self._stretches = stretches
        self._answers: dict[str, array[int]] = {}
        """Every token of an answer is the number that only its request has."""
        self._stretch: _Stretch | None = None
        self._inbox: list[Callable[[], None]] = []
        self.busy_s = 0.0
        self.steps = 0

    @property
    def is_computing(self) -> bool:
        return self._stretch is not None

    def submit(self, request: Request) -> None:
        self._answers[request.request_id] = array("I", [request.sampling.seed])
        self._scheduler.submit(request)

    @property
    def lower(self) -> LowerTiers:
        """What lies below its device; there are such tiers."""
        assert self._lower is not None
        return self._lower

    def offloaded(self, run_id: int) -> None:
        """A run of blocks is copied below, or never will be."""
        self._scheduler.offloaded(run_id)

    def land(self, request_id: str, num_blocks: int) -> Sequence[KvEvent]:
        """So many blocks of a reservation have come; what that changes in the cache."""
        self._scheduler.land(request_id, num_blocks)
        return self.pool.take_events()

    def finish_remote(self, request_id: str, num_blocks: int) -> None:
        """No further block of a reservation will come."""
        self._scheduler.finish_remote(request_id, num_blocks)

    def stop_prefill(self, request_id: str) -> None:
        """Compute no further for a reader elsewhere."""
        self._command(lambda: self._scheduler.stop_prefill(request_id))

    def release(self, request_id: str) -> None:
        """A reader elsewhere needs nothing any more."""
        self._command(lambda: self._scheduler.release(request_id))

    def _command(self, do: Callable[[], None]) -> None:
        if self._stretch is None:
            do()
        else:
            self._inbox.append(do)

    def begin(self, now_s: float) -> float | None:
        """Plan; when what is planned will have been computed, or None if there is nothing to do."""
        assert self._stretch is None, "the last step has not ended"
        plan = self._scheduler.schedule()
        self._scheduler.take_opened()
        if plan is None:
            return None
        shape = shape_of(plan)
        num_steps = self._scheduler.num_equal_steps() if self._stretches else 1
        if num_steps > 1:
            ends_s = now_s + self._performance.stretch_s(shape.num_decodes, shape.context_tokens, num_steps)
        else:
            ends_s = now_s + self._performance.step_s(shape)
        self._stretch = _Stretch(plan, now_s, num_steps, shape, ends_s)
        return ends_s

    def cut(self, now_s: float) -> float:
        """Something has changed: plan again after the step that is computed now; when that ends."""
        stretch = self._stretch
        assert stretch is not None, "nothing is being computed"
        if stretch.num_steps > 1:
            model, shape = self._performance, stretch.shape

            def ends_s(num_steps: int) -> float:
                return stretch.started_s + model.stretch_s(shape.num_decodes, shape.context_tokens, num_steps)

            stretch.num_steps = 1 + bisect_left(range(1, stretch.num_steps), now_s, key=ends_s)
            stretch.ends_s = ends_s(stretch.num_steps)
        return stretch.ends_s

    def end(self) -> StepOutput:
        """Complete what was begun; everything there is to tell."""
        stretch = self._stretch
        assert stretch is not None, "nothing is being computed"
        self._stretch = None
        plan, num_steps = stretch.plan, stretch.num_steps
        elapsed_s = stretch.ends_s - stretch.started_s
        self._fit.observe(stretch.middle, elapsed_s / num_steps, num_steps)
        self.busy_s += elapsed_s
        self.steps += num_steps
        self._scheduler.complete_unread(plan, num_steps, self._answers)
        for do in self._inbox:
            do()
        self._inbox.clear()
        return self.take()

    def output_tokens(self, now_s: float) -> dict[str, int]:
        """How many each answer has by now, if nobody computes on."""
        counts, stretch = self._scheduler.output_tokens(), self._stretch
        if stretch is not None:
            ends_s = self.cut(now_s)
            for piece in stretch.plan.slices():
                if piece.samples:
                    counts[piece.sequence.request.request_id] += stretch.num_steps - (ends_s > now_s)
        return counts

    def take(self) -> StepOutput:
        """What is known without a step: refusals, reservations, prompts that are in the cache."""
        for request_id in self._scheduler.take_left():
            del self._answers[request_id]
        return self._scheduler.take(self.load)

    @property
    def load(self) -> EngineLoad:
        """What there is to do now."""
        return self._scheduler.load(self._fit)

    @property
    def step_costs(self) -> LinearModel | None:
        """What steps cost, as far as it has measured."""
        return self._fit.model

    @property
    def preemptions(self) -> int:
        return self._scheduler.preemptions

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    @property
    def has_news(self) -> bool:
        """Whether somebody waits for what `take` gives."""
        return self._scheduler.has_news
