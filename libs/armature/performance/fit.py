"""Step times fitted to the steps that an engine makes, while it makes them.

Least squares over relative errors with forgetting. Steps with and without prompts are forgotten apart, so that a long
run of answers does not wash out what prompts cost. Where steps are all alike, they can't tell which of the five costs
they consist of: then the costs keep the proportions of a usual engine. A step that took much longer than those around
it (a pause, a first compilation) hardly counts; when all take longer, the fit follows.
"""

from dataclasses import astuple

import numpy as np
from numpy.typing import NDArray

from armature.performance.linear import LinearModel
from armature.performance.step import StepShape

Floats = NDArray[np.float64]

# Proportions of the five costs where steps don't tell: a 32B model on two H200. Only proportions count.
_USUAL = LinearModel(
    fixed_s=1e-2, decode_s=2.3e-5, context_token_s=3.1e-8, prefill_token_s=4.6e-5, prefill_pair_s=2e-9
)  # fmt: skip
_USUAL_COSTS = np.array(astuple(_USUAL))
# A cost never falls below this share of what is usual: prompts take some time, whatever noise says.
_LEAST_SHARE = 0.01
# Steps scatter by some 5 %, costs by their own size around the usual ones: the square of that ratio.
_USUAL_WEIGHT = 0.0025
_USUAL_PRODUCTS = _USUAL_WEIGHT * np.eye(5)
# Steps that are remembered: a step counts half after 90 further ones of its kind.
_MEMORY_STEPS = 128
# Steps of one kind that are taken in together, since a pause shows only beside others; prompts' are long and rare.
_DECODE_BATCH, _PREFILL_BATCH = 32, 8
# Relative to its neighbours, from where on a step counts less; more before there is a fit to compare with.
_ODD, _ODD_AT_FIRST = 0.5, 4.0
# A step of fewer prompt tokens takes as long as one of a single token: alone it says nothing about prompts.
_LEAST_PREFILL_TOKENS = 64


class StepFit:
    """What steps cost on this engine; a few microseconds a step."""

    def __init__(self) -> None:
        self._decodes, self._prefills = _Steps(_DECODE_BATCH), _Steps(_PREFILL_BATCH)
        self._fitted: LinearModel | None = None
        self._last_decodes: StepShape | None = None
        self._last_prefill: StepShape | None = None

    @property
    def model(self) -> LinearModel | None:
        """None until some steps with prompts have been measured: the first ones say more of a start than of prompts."""
        return self._fitted if self._last_prefill is not None and self._prefills.is_known else None

    @property
    def decode_step_s(self) -> float:
        """A step of the answers that run now; 0 until measured."""
        if self._fitted is None or self._last_decodes is None:
            return 0.0
        return self._fitted.step_s(self._last_decodes)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of steps like the last that computed much of a prompt; 0 until measured."""
        shape = self._last_prefill
        if self._fitted is None or shape is None:
            return 0.0
        return shape.prefill_tokens / self._fitted.step_s(shape)

    def observe(self, shape: StepShape, elapsed_s: float, num_steps: int = 1) -> None:
        """Take in a step, or several like it in a row that took `elapsed_s` each."""
        if not elapsed_s > 0:
            return
        if shape.prefill_tokens:
            kind = self._prefills
            if shape.prefill_tokens >= _LEAST_PREFILL_TOKENS:
                self._last_prefill = StepShape(0, 0, shape.prefill_tokens, shape.prefill_pairs)
        else:
            kind = self._decodes
            self._last_decodes = shape
        if kind.add(shape, elapsed_s, num_steps):
            self._fit()

    def _fit(self) -> None:
        decodes, prefills = self._decodes, self._prefills
        decodes_slow, prefills_slow = decodes.slowness or prefills.slowness, prefills.slowness or decodes.slowness
        scale = np.array([decodes_slow, decodes_slow, decodes_slow, prefills_slow, prefills_slow])
        products = decodes.products / decodes_slow**2 + prefills.products / prefills_slow**2
        targets = decodes.targets / decodes_slow**2 + prefills.targets / prefills_slow**2
        products = products * (scale[:, None] * scale) + _USUAL_PRODUCTS
        shares = _least_squares_above(_LEAST_SHARE, products, targets * scale + _USUAL_WEIGHT)
        factors = shares * scale
        decodes.factors = prefills.factors = factors
        self._fitted = LinearModel(*(factors * _USUAL_COSTS).tolist())


class _Steps:
    """Steps of one kind, as sums that least squares need; times are in those of the usual engine."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self.products: Floats = np.zeros((5, 5))
        self.targets: Floats = np.zeros(5)
        self.slowness = 0.0
        """How many times as long as on the usual engine these steps take; 0 until there are some."""
        self.factors: Floats | None = None
        """The last fit: each cost in times of the usual one."""
        self._past_products, self._past_targets = self.products, self.targets
        self._new: list[tuple[float, ...]] = []
        self._num_new = 0
        self._is_first = True

    @property
    def is_known(self) -> bool:
        """Whether there has been a whole batch."""
        return not self._is_first

    def add(self, shape: StepShape, elapsed_s: float, num_steps: int) -> bool:
        """Remember a step; whether it is time to fit again."""
        counts = min(num_steps, self._batch)
        self._new.append((*shape, elapsed_s, counts))
        self._num_new += counts
        is_full = self._num_new >= self._batch
        if not is_full and not self._is_first:
            return False
        self._sum_up()
        if is_full:
            self._past_products, self._past_targets = self.products, self.targets
            self._new.clear()
            self._num_new, self._is_first = 0, False
        return True

    def _sum_up(self) -> None:
        rows = np.array(self._new)
        parts = np.empty((len(rows), 5))
        parts[:, 0] = _USUAL.fixed_s
        parts[:, 1:] = rows[:, :4] * _USUAL_COSTS[1:]
        usual_s = parts.sum(axis=1)
        parts /= usual_s[:, None]
        took = rows[:, 4] / usual_s
        weights = rows[:, 5]
        if len(rows) > 1:  # Nothing is odd among itself.
            weights = weights * self._credence(parts, took)
        keep = (1 - 1 / _MEMORY_STEPS) ** self._num_new
        weighted = parts * weights[:, None]
        self.products = keep * self._past_products + weighted.T @ parts
        self.targets = keep * self._past_targets + weighted.T @ took
        self.slowness = float(self.targets.sum() / self.products.sum())

    def _credence(self, parts: Floats, took: Floats) -> Floats:
        """How much each step is to be believed, from 1 down; beyond the limit its pull fades as its error grows."""
        expected = None if self._is_first else self.factors
        ratios = took if expected is None else took / (parts @ expected)
        limit = _ODD_AT_FIRST if expected is None else _ODD
        odds = np.abs(ratios / np.sort(ratios)[len(ratios) // 2] - 1)
        return np.minimum(1.0, limit / np.maximum(odds, limit)) ** 2


def _least_squares_above(least: float, products: Floats, targets: Floats) -> Floats:
    """Solve `products @ x = targets` as well as it goes with every x at least `least`.

    An active set as in Lawson and Hanson, "Solving Least Squares Problems" (1974), chapter 23, that starts from all
    free: what falls below the bound is put on it, and freed again if it pulls away.
    """
    targets = targets - products.sum(axis=1) * least
    above = np.linalg.solve(products, targets).astype(np.float64, copy=False)
    if min(above.tolist()) >= 0:
        return above + least
    free: NDArray[np.bool_] = above >= 0
    for _ in range(3 * len(targets)):
        above[:] = 0.0
        above[free] = np.linalg.solve(products[free][:, free], targets[free])
        if (above < 0).any():
            free &= above >= 0
            continue
        pulls = np.where(free, 0.0, targets - products @ above)
        if pulls.max() <= 1e-12:
            break
        free[pulls.argmax()] = True
    return np.maximum(above, 0.0) + least
