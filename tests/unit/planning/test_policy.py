"""What is wrong with a policy is told with the field and what to write."""

from typing import Any

import pytest

from armature.planning.forecast import Holt, Seasonal
from armature.planning.policy import planner_policy_of
from armature.routing.parts import PolicyError
from armature.runtime.policies import PLANNER_POLICIES, load_planner_policy

TARGETS = {"ttft_s": 2.0, "itl_s": 0.05}


def test_what_is_left_out_has_its_default() -> None:
    policy = planner_policy_of({"targets": TARGETS}, "mine")
    assert (policy.name, policy.mode, policy.targets.quantile, policy.limits.min_workers) == (
        "mine",
        "aggregated",
        0.95,
        1,
    )


def test_forecasters_are_named_with_their_options_and_know_the_interval() -> None:
    given = ["constant", {"holt": {"alpha": 0.5}}, {"seasonal": {"period_s": 3600}}]
    policy = planner_policy_of({"targets": TARGETS, "interval_s": 20.0, "forecast": {"forecasters": given}})
    assert list(policy.forecast.forecasters) == ["constant", "holt", "seasonal"]
    assert policy.forecast.forecasters["holt"] == Holt(alpha=0.5)
    assert policy.forecast.forecasters["seasonal"] == Seasonal(period_s=3600, window_s=20.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there are no targets; write such as"),
        ({"targets": {"ttft_s": 2.0}}, "targets: there is no itl_s; write seconds"),
        ({"targets": {**TARGETS, "ttft_s": -1.0}}, "targets: ttft_s is -1"),
        ({"targets": {**TARGETS, "ttft": 1.0}}, "targets: there is no 'ttft'; did you mean 'ttft_s'?"),
        ({"targets": TARGETS, "mode": "both"}, "mode is 'both'; it must be one of aggregated, disaggregated"),
        ({"targets": TARGETS, "headroom": 1.5}, "headroom is 1.5; it must be at most 1"),
        ({"targets": TARGETS, "pattern_s": 5}, "pattern_s is 5; it must be at least window_s"),
        ({"targets": TARGETS, "limits": {"min_workers": 9, "max_workers": 3}}, "limits: min_workers is 9"),
        ({"targets": TARGETS, "limits": {"max_workers": 2.5}}, "limits: max_workers is 2.5; it must be a whole number"),
        ({"targets": TARGETS, "forecast": {"quantile": 95}}, "forecast: quantile is 95; it must be above 0 and below"),
        ({"targets": TARGETS, "forecast": {"forecasters": ["hold"]}}, "there is no 'hold'; did you mean 'holt'?"),
        (
            {"targets": TARGETS, "forecast": {"forecasters": [{"ewma": {"alpha": 3}}]}},
            "ewma: alpha is 3; it must be above 0",
        ),
        ({"targets": TARGETS, "cooldown": 3}, "there is no 'cooldown'"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        planner_policy_of(given)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", PLANNER_POLICIES.names())
def test_what_comes_with_the_library_can_be_loaded(name: str) -> None:
    assert load_planner_policy(name).forecast.forecasters
