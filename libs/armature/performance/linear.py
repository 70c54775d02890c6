"""Step times as a sum of five products: what a worker measures of itself and tells on the wire."""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from armature.performance.step import StepShape

Count = TypeVar("Count", float, NDArray[np.float64])
"""One worker's or, all at once, that of many."""


@dataclass(frozen=True, slots=True)
class LinearModel:
    """Seconds for each thing that a step does.

    Raises:
        ValueError: a number is negative or not finite.
    """

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

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")

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
        return num_steps * self.decode_step_s(num_decodes, context_tokens + grown)

    def decode_step_s(self, num_decodes: Count, context_tokens: Count) -> Count:
        """A step of running answers alone."""
        return self.fixed_s + self.decode_s * num_decodes + self.context_token_s * context_tokens

    def prefill_s(self, new_tokens: Count, cached_tokens: Count, chunk_tokens: Count) -> Count:
        """Computing the new tokens of a prompt behind the cached ones alone, in steps of at most `chunk_tokens`."""
        num_steps = -(-new_tokens // chunk_tokens)
        token_s = self.prefill_token_s + self.prefill_pair_s * (cached_tokens + new_tokens / 2)
        return self.fixed_s * num_steps + token_s * new_tokens
