"""How long requests wait in an engine before anything is done for them."""

from prometheus_client import Histogram

from armature.scheduling.plan import StepPlan
from armature.scheduling.request import StepOutput

_queue_s = Histogram(
    "armature_worker_queue_seconds",
    "From a request's coming to its first step, or to its having room for blocks that are read from elsewhere.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


class QueueTimes:
    """Knows who waits, and nobody else: so it costs a busy engine nothing unless somebody does.

    `submitted` may be called on another thread than the rest.
    """

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._since_s)

    def submitted(self, request_id: str, now_s: float) -> None:
        self._since_s[request_id] = now_s

    def began(self, plan: StepPlan, now_s: float) -> None:
        """A step is to be made."""
        if self._since_s:
            for piece in plan.chunks:
                self._end(piece.sequence.request.request_id, now_s)

    def told(self, output: StepOutput, now_s: float) -> None:
        """What has come of a step, or without one: requests are refused, and given room, in between."""
        if self._since_s:
            for reserved in output.reserved:
                self._end(reserved.request_id, now_s)
            for token in output.tokens:
                if token.finish_reason is not None:
                    self.forget(token.request_id)

    def forget(self, request_id: str) -> None:
        """It waits for nothing any more."""
        self._since_s.pop(request_id, None)

    def _end(self, request_id: str, now_s: float) -> None:
        since_s = self._since_s.pop(request_id, None)
        if since_s is not None:
            _queue_s.observe(now_s - since_s)
