"""What an engine's step consists of, and who can say how long it takes."""

from typing import NamedTuple, Protocol


class StepShape(NamedTuple):
    """What one step computes."""

    num_decodes: int
    context_tokens: int
    """Tokens that the running answers attend to, summed."""
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0
    """Pairs of a prompt token and a token that it attends to, over all chunks."""


class PerformanceModel(Protocol):
    """Predicts the duration of steps, in seconds."""

    def step_s(self, shape: StepShape) -> float: ...

    def stretch_s(self, num_decodes: int, context_tokens: int, num_steps: int) -> float:
        """Steps of the same running answers in a row; each answer's context grows by a token a step.

        Must grow with `num_steps`, and be what `step_s` gives for the steps one by one.
        """
        ...
