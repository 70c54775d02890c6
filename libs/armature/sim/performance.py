"""How long an engine's step takes, as a function of what is in it.

Anything with the two methods of `PerformanceModel` will do; `RooflineModel` is one given by six numbers. It knows
nothing of requests, blocks or time of day.
"""

from dataclasses import dataclass, fields
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


# Fitted to the step times of aiconfigurator-core 0.12.0 (Qwen/Qwen3-32B, h200_sxm, trtllm, tp_size=2), relative least
# squares: prompts of 128 to 8,192 new tokens behind 0 to 98,304 cached ones (49 points, at most 10 % off, above 1,000
# tokens at most 5 %), decode with batches of 1 to 256 and contexts of 512 to 32,768 (36 points, at most 5 % off).
_QWEN3_32B_TP2_H200 = RooflineModel(
    memory_s=10.974e-3,
    memory_seq_s=22.61e-6,
    compute_s=7.847e-3,
    compute_token_s=46.29e-6,
    pair_s=2.0048e-9,
    context_token_s=31.22e-9,
)


class Preset(NamedTuple):
    """A model on its GPUs."""

    model: str
    performance: RooflineModel
    kv_tokens: int
    """Tokens whose KV fits beside the weights."""
    token_bytes: int
    """KV of one token."""


PRESETS = {
    # 64 layers of 8 KV heads of 128 in 16 bits are 256 KiB a token. Of 2 x 141 GB weights take 65.5; 0.9 of all less
    # the weights is 188 GB, and 1,400 blocks of 512 tokens are all of that.
    "qwen3-32b-tp2-h200": Preset("Qwen3-32B", _QWEN3_32B_TP2_H200, 1400 * 512, 262_144),
}
