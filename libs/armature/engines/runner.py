"""The contract between an engine's step loop and what computes: a model, or nothing at all (`simulated`)."""

from collections.abc import Sequence
from typing import Protocol

from armature.engines.engine import BlockMemory, EngineInfo
from armature.scheduling.plan import SampledToken, StepPlan
from armature.v1.common_pb2 import Grammar


class Runner(Protocol):
    """Computes steps over its own block memory. Called from one thread only, the engine's, except for `compile`."""

    @property
    def info(self) -> EngineInfo: ...
    @property
    def memory(self) -> BlockMemory: ...

    def execute(self, plan: StepPlan) -> Sequence[SampledToken]:
        """Compute a step; one token per slice that samples, in the plan's order.

        Random numbers depend on (seed, output position) alone.
        """
        ...

    def rest(self) -> None:
        """There is nothing to compute at the moment: the next step does not follow on the last one."""
        ...

    def open_blocks(self, block_ids: Sequence[int]) -> None:
        """Zero these blocks' digests at once (a reservation between steps, before a transport may write)."""
        ...

    def forget(self, request_id: str) -> None:
        """The request has left the engine; drop what was kept for it (penalty counts and the like)."""
        ...

    def compile(self, grammar: Grammar) -> object | None:
        """See `Engine.compile`. Blocking; called from any thread.

        Raises:
            ValueError: the grammar can't be followed.
        """
        ...
