"""Offload policies as data: those that come with the library work, and a wrong one is refused with what to write."""

from pathlib import Path
from typing import Any

import pytest

from armature.offload.admission import Frequency
from armature.offload.eviction import Ttl
from armature.offload.policy import TierPolicy, offload_policy_of
from armature.routing.parts import PolicyError
from armature.runtime.policies import OFFLOAD_POLICIES, load_offload_policy


@pytest.mark.parametrize("name", OFFLOAD_POLICIES.names())
def test_every_policy_that_comes_with_the_library_is_whole(name: str) -> None:
    assert load_offload_policy(name).name == name


def test_the_default_policy_comes_first() -> None:
    assert OFFLOAD_POLICIES.names()[0] == OFFLOAD_POLICIES.default


def test_a_policy_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("g3:\n  admission: {frequency: {min_uses: 3}}\n  eviction: {ttl: {default_s: 60}}\n")
    policy = load_offload_policy(str(path))
    assert policy.g3 == TierPolicy(admission=Frequency(min_uses=3), eviction=Ttl(default_s=60))
    assert policy.g2 == TierPolicy()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"g1": {}}, "there is no 'g1'; there are g2, g3, g4"),
        ({"g2": 7}, "g2: 7 are no options"),
        ({"g2": {"evictoin": "lru"}}, "g2: there is no 'evictoin'; did you mean 'eviction'?"),
        ({"g2": {"eviction": "fifo"}}, "g2: eviction: there is no 'fifo'"),
        ({"g2": {"eviction": ["lru"]}}, "g2: eviction is ['lru']; it must be one name"),
        ({"g2": {"eviction": {"ttl": {"default_s": 0}}}}, "g2: eviction: ttl: default_s is 0; it must be above 0"),
        ({"g3": {"admission": {"frequency": {"min_uses": 1.5}}}}, "min_uses is 1.5; it must be a whole number"),
        ({"g3": {"admission": {"tinylfu": {"min_uses": 16}}}}, "g3: admission: tinylfu: min_uses is 16; the sketch"),
        ({"g3": {"admission": {"cost": {"min_s_per_gib": -1}}}}, "min_s_per_gib is -1"),
        ({"g3": {"offered": "never"}}, "g3: offered is 'never'; it must be one of evicted, used"),
        ({"g3": {"write_bytes_per_s": -1}}, "g3: write_bytes_per_s is -1"),
        ({"g3": {"burst_s": 0}}, "g3: burst_s is 0; it must be above 0"),
        ({"g3": {"tenant_share": 1.5}}, "g3: tenant_share is 1.5; it must be from 0 to 1"),
        ({"g3": {"tenants": ["a"]}}, "g3: tenants is ['a']; it must be tenants with their shares"),
        ({"g3": {"tenants": {"a": "x"}}}, "g3: tenants: a is 'x'; it must be a number"),
        ({"g3": {"tenants": {"a": 2}}}, "g3: tenants: a is 2.0; it must be from 0 to 1"),
    ],
)
def test_a_wrong_policy_is_refused_with_what_to_write(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PolicyError) as refused:
        offload_policy_of(given, "mine")
    assert str(refused.value).startswith("policy mine: ")
    assert complaint in str(refused.value)


def test_a_policy_that_is_not_there_is_answered_with_those_that_are() -> None:
    with pytest.raises(PolicyError, match=r"there is no policy 'al'; there are .*all.*, or pass a file"):
        load_offload_policy("al")
