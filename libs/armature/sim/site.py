"""A place for a worker: it drives the worker's engine through simulated time, and outlives it when it dies."""

from collections.abc import Callable
from dataclasses import dataclass

from armature.routing.worker import Worker
from armature.scheduling.request import Request, StepOutput
from armature.sim.clock import Clock
from armature.sim.worker import SimulatedWorker


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What one worker has done."""

    worker_id: str
    requests: int
    """That it has answered, or tried to; a prefill worker answers none."""
    steps: int
    busy_s: float
    preemptions: int


class Site:
    """`hear` is told all that comes of the engine."""

    def __init__(
        self,
        worker: Worker,
        make: Callable[[Worker], SimulatedWorker],
        clock: Clock,
        hear: Callable[["Site", StepOutput, float], None],
    ) -> None:
        self.worker_id = worker.worker_id
        self.worker = worker
        self.engine = make(worker)
        self.is_up = True
        self.epoch = 1
        """Which engine this is; what earlier ones have said is void."""
        self._make = make
        self._clock = clock
        self._hear = hear
        self._wakes_s = -1.0
        """For which the engine was last planned; other wake-ups are void."""
        self._is_poked = False
        self.requests = 0
        self._busy_s = 0.0
        self._steps = 0
        self._preemptions = 0

    def submit(self, request: Request, now_s: float) -> None:
        """Give the engine a request."""
        self.engine.submit(request)
        self._look(now_s)

    def poke(self) -> None:
        """The engine was told something: let it plan anew, as soon as all is done that happens now."""
        if self._is_poked:
            return
        self._is_poked = True
        epoch = self.epoch

        def do(now_s: float) -> None:
            if self._is_poked and self.epoch == epoch:
                self._look(now_s)

        self._clock.at(self._clock.now_s, do)

    def die(self) -> None:
        """Lose the engine and all that it had."""
        self._count(self.engine)
        self.epoch += 1
        self.is_up, self.engine = False, self._make(self.worker)
        self._wakes_s, self._is_poked = -1.0, False

    def close(self) -> WorkerOutcome:
        """What all its engines have done."""
        self._count(self.engine)
        return WorkerOutcome(self.worker_id, self.requests, self._steps, self._busy_s, self._preemptions)

    def _count(self, engine: SimulatedWorker) -> None:
        self._busy_s += engine.busy_s
        self._steps += engine.steps
        self._preemptions += engine.preemptions

    def _look(self, now_s: float) -> None:
        self._is_poked = False
        if self.engine.is_computing:
            self._wake(self.engine.cut(now_s))
        else:
            self._continue(now_s)

    def _continue(self, now_s: float) -> None:
        self._is_poked = False
        ends_s = self.engine.begin(now_s)
        if ends_s is None:
            self._wakes_s = -1.0
            self._hear(self, self.engine.take(), now_s)
        else:
            self._wake(ends_s)
            if self.engine.has_news:
                # A reservation must not wait for a step: its blocks can travel while the step is computed.
                self._hear(self, self.engine.take(), now_s)

    def _wake(self, when_s: float) -> None:
        if self._wakes_s == when_s:
            return
        self._wakes_s, epoch = when_s, self.epoch

        def do(now_s: float) -> None:
            if self._wakes_s == now_s and self.epoch == epoch and self.engine.is_computing:
                self._wakes_s = -1.0
                self._hear(self, self.engine.end(), now_s)
                self._continue(now_s)

        self._clock.at(when_s, do)
