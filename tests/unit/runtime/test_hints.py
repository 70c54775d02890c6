"""Hints come over the wire as they went in."""

import pytest

from armature.routing.hints import NO_HINTS, Hints
from armature.runtime.errors import CallerError
from armature.runtime.hints import hints_message, hints_of
from armature.runtime.placement import query_of
from armature.v1 import hints_pb2
from armature.v1.router_pb2 import Query

ALL = Hints(
    priority=-3,
    latency_sensitivity=0.0,
    ttft_target_s=1.5,
    expected_output_tokens=700,
    cache_ttl_s=300.0,
    speculative_prefill=True,
)


def test_hints_come_back_as_they_went() -> None:
    message = hints_message(ALL)
    assert message is not None
    assert hints_of(hints_pb2.Hints.FromString(message.SerializeToString())) == ALL


def test_nothing_said_is_nothing_sent() -> None:
    assert hints_message(NO_HINTS) is None
    assert hints_of(Query().hints) is NO_HINTS


def test_a_weight_that_is_not_said_is_the_usual_one_and_a_weight_of_zero_is_zero() -> None:
    assert hints_of(hints_pb2.Hints(priority=1)).latency_sensitivity == NO_HINTS.latency_sensitivity
    assert hints_of(hints_pb2.Hints(latency_sensitivity=0.0)).latency_sensitivity == 0.0


def test_a_query_brings_who_it_is_from_and_what_is_hinted() -> None:
    asked = query_of(
        Query(request_id="r", prompt_tokens=5, tenant="acme", session_id="s", hints=hints_message(ALL)), "gateway-1"
    )
    assert (asked.owner, asked.tenant, asked.session_id, asked.hints) == ("gateway-1", "acme", "s", ALL)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (Query(query_id=7, prompt_tokens=1, hints=hints_pb2.Hints(priority=11)), "query 7: priority is 11"),
        (Query(query_id=7, prompt_tokens=1, hints=hints_pb2.Hints(cache_ttl_s=float("nan"))), "cache_ttl_s is nan"),
        (Query(query_id=7), "query 7: .*prompt_tokens is 0"),
        (Query(query_id=7, prompt_tokens=1, sequence_hashes=b"short"), "query 7: 5 bytes"),
    ],
)
def test_a_query_of_no_use_is_refused_by_name(query: Query, why: str) -> None:
    with pytest.raises(CallerError, match=why):
        query_of(query)
