"""Step times from tables: measured points, straight lines between them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite

from armature.performance.step import StepShape

_SHORTEST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Curve:
    """Straight lines through points, of which the first and the last go on.

    Raises:
        ValueError: fewer than two points, `xs` that do not rise, or values that are negative or not finite.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    _slopes: Sequence[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        xs, ys = self.xs, self.ys
        if len(xs) < 2 or len(xs) != len(ys):
            raise ValueError(f"a curve has {len(xs)} xs and {len(ys)} ys; it needs as many of both, at least 2")
        if any(right <= left for left, right in pairwise(xs)):
            raise ValueError(f"xs are {list(xs)}; each must be above the one before it")
        if not all(isfinite(y) and y >= 0 for y in ys):
            raise ValueError(f"ys are {list(ys)}; all must be finite and at least 0")
        steps = range(len(xs) - 1)
        object.__setattr__(self, "_slopes", [(ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i]) for i in steps])

    def at(self, x: float) -> float:
        i = min(max(bisect_right(self.xs, x) - 1, 0), len(self._slopes) - 1)
        return max(self.ys[i] + self._slopes[i] * (x - self.xs[i]), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableModel:
    """Everything but attention by the number of tokens, attention by pairs; both costs change with the batch.

    Unlike a roofline it holds for experts, of which larger batches wake more.
    """

    decode_s: Curve
    """A step of so many running answers, without their attention."""
    context_token_s: Curve
    """What each token of context adds to it."""
    prefill_s: Curve
    """A step of so many tokens, some of them prompts', without attention."""
    pair_s: Curve
    """What each pair of a prompt token and a token before it adds, in chunks of so many tokens."""

    def step_s(self, shape: StepShape) -> float:
        num_decodes, context_tokens, prefill_tokens, pairs = shape
        if not prefill_tokens:
            return self.stretch_s(num_decodes, context_tokens, 1)
        took_s = self.prefill_s.at(num_decodes + prefill_tokens) + self.pair_s.at(prefill_tokens) * pairs
        if num_decodes:
            took_s += self.context_token_s.at(num_decodes) * context_tokens
        return max(took_s, _SHORTEST_S)

    def stretch_s(self, num_decodes: int, context_tokens: int, num_steps: int) -> float:
        grown = num_decodes * (num_steps - 1) / 2
        attention_s = self.context_token_s.at(num_decodes) * (context_tokens + grown)
        return num_steps * max(self.decode_s.at(num_decodes) + attention_s, _SHORTEST_S)
