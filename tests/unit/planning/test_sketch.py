"""Quantiles in bounded memory, against sorting."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.planning.sketch import Sketch

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_two_percent_of_the_true_one(values: list[float], share: float) -> None:
    true = sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
    assert Sketch(values).quantile(share) == pytest.approx(true, rel=0.021, abs=1e-4)


@given(VALUES, VALUES)
def test_merged_sketches_are_the_sketch_of_all(left: list[float], right: list[float]) -> None:
    merged, together = Sketch(left), Sketch(left + right)
    merged.merge(Sketch(right))
    assert [merged.quantile(share / 10) for share in range(11)] == [
        together.quantile(share / 10) for share in range(11)
    ]
    assert merged.count == together.count


def test_of_nothing_every_quantile_is_zero() -> None:
    assert (Sketch().quantile(0.5), Sketch().mean) == (0.0, 0.0)


def test_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        Sketch().quantile(1.5)
