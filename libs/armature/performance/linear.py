"""Step times as a sum of five products: what a worker measures of itself and tells on the wire."""

from typing import NamedTuple

from armature.performance.step import StepShape


class LinearModel(NamedTuple):
    """Seconds for each thing that a step does."""

    fixed_s: float
    """Every step."""
    decode_s: float
    """Each answer that grows by a token."""
    context_token_s: float
    """Each token that a growing answer attends to."""
    prefill_token_s: float
    """Each prompt token."""
    prefill_pair_s: float
    """Each pair of a prompt token and a token before it."""

    def step_s(self, shape: StepShape) -> float:
        return (
            self.fixed_s
            + self.decode_s * shape.num_decodes
            + self.context_token_s * shape.context_tokens
            + self.prefill_token_s * shape.prefill_tokens
            + self.prefill_pair_s * shape.prefill_pairs
        )

    def stretch_s(self, num_decodes: int, context_tokens: int, num_steps: int) -> float:
        grown = num_decodes * (num_steps - 1) / 2
        return num_steps * (
            self.fixed_s + self.decode_s * num_decodes + self.context_token_s * (context_tokens + grown)
        )
