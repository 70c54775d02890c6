"""Made-up traffic: Poisson arrivals, lognormal lengths, and beginnings that many prompts share.

Requests are made while they are gone through, so that any number of them takes no memory. The same seed gives the same
ones, however often.
"""

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from armature.sim.trace import FIRST_ANSWER, TraceRequest


class Rng(Protocol):
    """A seeded source of numbers; `random.Random` is one."""

    def random(self) -> float:
        """At least 0 and below 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficShape:
    """What is drawn. Lengths vary around their means by the `cv`, their standard deviation over the mean.

    Raises:
        ValueError: a number is out of its range.
    """

    rate: float = 10.0
    """Requests a second."""
    isl: float = 4000.0
    """Tokens of a prompt."""
    isl_cv: float = 1.0
    osl: float = 200.0
    """Tokens of an answer."""
    osl_cv: float = 1.0
    shared: float = 0.5
    """Share of a prompt, in the mean, that it has in common with others; whole blocks count."""
    prefixes: int = 1000
    """Different beginnings."""
    zipf: float = 1.0
    """How uneven they are: the n-th is drawn in proportion to `n ** -zipf`; 0: all alike."""
    most_tokens: int = 131_072
    """No prompt and no answer is longer."""

    def __post_init__(self) -> None:
        bounds = {
            "rate": (1e-6, 1e6),
            "isl": (1, 1e7),
            "isl_cv": (0, 10),
            "osl": (1, 1e7),
            "osl_cv": (0, 10),
            "shared": (0, 1),
            "prefixes": (1, 1_000_000),
            "zipf": (0, 10),
            "most_tokens": (1, 10_000_000),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be from {low:g} to {high:g}")


@dataclass(frozen=True, slots=True)
class SyntheticRequests:
    """`make_rng` gives a generator that begins anew."""

    shape: TrafficShape
    num_requests: int
    block_size: int
    make_rng: Callable[[], Rng]

    def __len__(self) -> int:
        return self.num_requests

    def __iter__(self) -> Iterator[TraceRequest]:
        shape, rng = self.shape, self.make_rng()
        weights = list(accumulate((n + 1) ** -shape.zipf for n in range(shape.prefixes)))
        stride = -(-shape.most_tokens // self.block_size)
        own, arrival_s = shape.prefixes * stride, 0.0
        for _ in range(self.num_requests):
            arrival_s -= math.log(1.0 - rng.random()) / shape.rate
            prompt_tokens = self._length(shape.isl, shape.isl_cv, rng)
            output_tokens = self._length(shape.osl, shape.osl_cv, rng)
            prefix = bisect_left(weights, rng.random() * weights[-1])
            # From none to twice the mean, or from what makes up for it to all.
            spread = min(shape.shared, 1.0 - shape.shared)
            share = shape.shared + spread * (2.0 * rng.random() - 1.0)
            num_blocks = -(-prompt_tokens // self.block_size)
            num_shared = min(int(share * prompt_tokens) // self.block_size, num_blocks)
            contents = array("I", range(prefix * stride, prefix * stride + num_shared))
            contents.extend(range(own, own + num_blocks - num_shared))
            own += num_blocks - num_shared
            assert own < FIRST_ANSWER, "there are no numbers left for contents"
            yield TraceRequest(arrival_s, prompt_tokens, output_tokens, contents)

    def _length(self, mean: float, cv: float, rng: Rng) -> int:
        """Lognormal, by Box and Muller's transform."""
        variance = math.log(1.0 + cv * cv)
        normal = math.sqrt(-2.0 * math.log(1.0 - rng.random())) * math.cos(2.0 * math.pi * rng.random())
        drawn = mean * math.exp(math.sqrt(variance) * normal - variance / 2.0)
        return min(max(round(drawn), 1), self.shape.most_tokens)
