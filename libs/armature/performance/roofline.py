"""Step times of an engine whose steps are bound by reading weights or by arithmetic, given by six numbers."""

from dataclasses import dataclass, fields

from armature.performance.step import StepShape


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineModel:
    """The slower of reading the weights and multiplying with them, and attention on top.

    Raises:
        ValueError: a number is negative, or both fixed costs are 0, so that time would stand still.
    """

    memory_s: float
    """A step that is bound by reading the weights."""
    memory_seq_s: float
    """What each token in such a step adds."""
    compute_s: float
    """Fixed part of a step that is bound by arithmetic."""
    compute_token_s: float
    """What each token in such a step adds."""
    pair_s: float
    """Attention of prompts, for each pair of tokens: this makes long prompts cost more than their length."""
    context_token_s: float
    """Attention of running answers, for each token of context."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it must be at least 0")
        if not max(self.memory_s, self.compute_s) > 0:
            raise ValueError("memory_s and compute_s are both 0; a step must take some time")

    def step_s(self, shape: StepShape) -> float:
        tokens = shape.num_decodes + shape.prefill_tokens
        return (
            self._fixed_s(tokens) + self.pair_s * shape.prefill_pairs + self.context_token_s * shape.context_tokens
        )  # fmt: skip

    def stretch_s(self, num_decodes: int, context_tokens: int, num_steps: int) -> float:
        grown = num_decodes * (num_steps - 1) / 2
        return num_steps * (self._fixed_s(num_decodes) + self.context_token_s * (context_tokens + grown))

    def _fixed_s(self, tokens: int) -> float:
        return max(self.memory_s + self.memory_seq_s * tokens, self.compute_s + self.compute_token_s * tokens)
