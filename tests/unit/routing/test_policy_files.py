"""Policies as data: those that come with the library work, and a wrong one is refused with what to write."""

from pathlib import Path
from typing import Any

import pytest

from armature.routing.parts import PolicyError
from armature.routing.pickers import Lowest
from armature.routing.policy import Disaggregation, Policy, policy_of, with_option
from armature.routing.scorers import Interference, Requests, Work
from armature.runtime.policies import load_policy, read_policy, shipped_policies


@pytest.mark.parametrize("name", shipped_policies())
def test_every_policy_that_comes_with_the_library_is_whole(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    counted = {"seconds": "s", "dynamo": "blocks", "dynamo_wspt": "blocks", "random": "", "round_robin": ""}
    assert policy.unit == counted.get(name, "requests")


def test_the_default_policy_comes_first() -> None:
    assert shipped_policies()[0] == "seconds"


def test_parts_are_names_with_or_without_options() -> None:
    policy = policy_of({"scorers": ["queue", {"interference": {"weight": 2}}, {"work": None}], "picker": "random"})
    assert list(policy.scorers) == ["queue", "interference", "work"]
    assert policy.scorers["interference"] == Interference(weight=2)
    assert policy.scorers["work"] == Work()
    assert policy_of({"disaggregation": "never"}).disaggregation is Disaggregation.NEVER
    assert policy_of({}).picker == Lowest()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"scorer": []}, "there is no 'scorer'; did you mean 'scorers'?"),
        ({"scorers": ["quue"]}, "scorers: there is no 'quue'; did you mean 'queue'?"),
        ({"scorers": "queue"}, "scorers is 'queue'; it must be a list"),
        ({"scorers": [{"queue": {}, "room": {}}]}, "neither a name nor a name with its options"),
        ({"scorers": [7]}, "7 is neither a name"),
        ({"scorers": ["work", "work"]}, "work is there twice"),
        ({"scorers": [{"work": 3}]}, "scorers: work: 3 are no options"),
        ({"scorers": [{"work": {"wait": 3}}]}, "scorers: work: there is no 'wait'"),
        ({"scorers": [{"work": {"weight": "3"}}]}, "scorers: work: weight is '3'; it must be a number"),
        ({"scorers": [{"work": {"weight": True}}]}, "weight is True; it must be a number"),
        ({"scorers": [{"work": {"weight": float("nan")}}]}, "scorers: work: weight is nan; it must be a finite"),
        ({"scorers": [{"work": {"weight": float("inf")}}]}, "weight is inf"),
        ({"scorers": [{"work": {"weight": -1}}]}, "weight is -1"),
        ({"scorers": [{"interference": {"ride_along_tokens": 1.5}}]}, "must be a whole number"),
        ({"scorers": ["queue", "active_blocks"]}, "different units can't be added up: queue in s, active_blocks in"),
        ({"filters": [{"room": {"max_waiting_seqs": 0}}]}, "filters: room: max_waiting_seqs is 0; it must be above 0"),
        ({"filters": [{"hot_spot": {"factor": 0.5}}]}, "factor is 0.5; it must be at least 1"),
        ({"picker": {"softmax": {"temperature": 0}}}, "picker: softmax: temperature is 0"),
        ({"picker": {"lowest": {"among_equals": "first"}}}, "must be one of spread, random"),
        ({"picker": ["lowest", "random"]}, "picker"),
        ({"prefiller": "both"}, "prefiller is 'both'; it must be one of joint, own"),
        ({"disaggregation": "maybe"}, "disaggregation is 'maybe'; it must be one of auto, always, never"),
        ({"forecast": {"turnover_s": -1}}, "forecast: turnover_s is -1"),
        ({"assume": {"decode_step_s": 0}}, "assume: decode_step_s is 0; it must be above 0"),
        ({"expected_ttl_s": "soon"}, "expected_ttl_s is 'soon'"),
        ({"settle_s": float("nan")}, "settle_s is nan"),
    ],
)
def test_a_wrong_policy_is_refused_with_what_to_write(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy_of(given, "mine")
    assert str(caught.value).startswith("policy mine: ")
    assert complaint in str(caught.value)


def test_a_policy_made_by_hand_is_held_to_the_same() -> None:
    with pytest.raises(ValueError, match="different units"):
        Policy(scorers={"work": Work(), "requests": Requests()})


def test_a_policy_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scorers: [queue, work: {weight: 2}]\npicker: lowest\n")
    policy = load_policy(str(path))
    assert (policy.name, policy.scorers["work"]) == ("mine", Work(weight=2))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("scorers: [queue\npicker: lowest\n", "line 2"),
        ("- queue\n", "a policy is a mapping"),
        ("scorers:\n\t- queue\n", "line 2"),
        ("scorers: [quue]\n", "did you mean 'queue'?"),
        ("1: 2\n", "a policy is a mapping"),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policy(str(path))
    assert "mine" in str(caught.value)
    assert complaint in str(caught.value)


def test_a_policy_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="there is no policy 'second'; there are seconds, dynamo"):
        load_policy("second")
    with pytest.raises(PolicyError, match=r"nowhere\.yaml can't be read"):
        load_policy(str(tmp_path / "nowhere.yaml"))


def test_single_options_can_be_changed() -> None:
    plain = read_policy("seconds")
    for path, value in (("work.weight", 5), ("lowest.tie", 0.5), ("expected_ttl_s", 1), ("forecast.turnover_s", 3)):
        plain = with_option(plain, path, value)
    policy = policy_of(plain)
    assert policy.scorers["work"] == Work(weight=5)
    assert (policy.picker, policy.expected_ttl_s, policy.forecast.turnover_s) == (Lowest(tie=0.5), 1, 3)
    assert with_option({"picker": "softmax"}, "softmax.temperature", 1) == {"picker": {"softmax": {"temperature": 1}}}
    with pytest.raises(PolicyError, match="no part 'wrok'"):
        with_option(plain, "wrok.weight", 5)
