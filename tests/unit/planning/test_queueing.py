"""The replayed queue against closed formulas and against a queue that is reckoned step by step."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.performance.step import StepShape
from armature.planning.queueing import jobs_of, meet_aggregated, meet_disaggregated, prefill_s_of, wait
from tests.unit.planning.kinds import arrivals, kind, poisson


def erlang_c(num_servers: int, load: float) -> float:
    """The share of arrivals that wait in an M/M/c queue (Erlang, 1917)."""
    terms = [load**k / math.factorial(k) for k in range(num_servers)]
    last = load**num_servers / math.factorial(num_servers) * num_servers / (num_servers - load)
    return last / (sum(terms) + last)


def exponential(mean: float, count: int, seed: int) -> np.ndarray:
    rng = random.Random(seed)
    return np.array([rng.expovariate(1 / mean) for _ in range(count)])


@pytest.mark.parametrize(("num_servers", "load"), [(1, 0.5), (1, 0.8), (4, 3.0), (16, 13.0)])
def test_random_service_waits_as_long_as_erlang_says(num_servers: int, load: float) -> None:
    count = 25_000
    came, service = np.cumsum(exponential(1 / load, count, 1)), exponential(1.0, count, 2)
    begins, _ = wait(came, service, num_servers)
    expected = erlang_c(num_servers, load) / (num_servers - load)
    assert float((begins - came).mean()) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_equal_service_waits_as_long_as_pollaczek_and_khinchine_say(load: float) -> None:
    came = np.cumsum(exponential(1 / load, 25_000, 3))
    begins, _ = wait(came, np.ones(len(came)), 1)
    assert float((begins - came).mean()) == pytest.approx(load / (2 * (1 - load)), rel=0.08)


@pytest.mark.parametrize(("num_servers", "load"), [(2, 1.5), (8, 6.5)])
def test_the_tail_of_waiting_is_that_of_the_formula(num_servers: int, load: float) -> None:
    """In M/M/c a wait of more than t has the probability C exp(-(c - a) t)."""
    count = 30_000
    came, service = np.cumsum(exponential(1 / load, count, 5)), exponential(1.0, count, 6)
    begins, _ = wait(came, service, num_servers)
    expected = math.log(erlang_c(num_servers, load) / 0.05) / (num_servers - load)
    assert float(np.quantile(begins - came, 0.95)) == pytest.approx(expected, rel=0.15)


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0.01, 3)), min_size=1, max_size=40), st.integers(1, 5))
def test_nobody_waits_longer_if_there_is_one_server_more(steps: list[tuple[float, float]], num_servers: int) -> None:
    came, service = np.cumsum([gap for gap, _ in steps]), np.array([takes for _, takes in steps])
    fewer, _ = wait(came, service, num_servers)
    more, _ = wait(came, service, num_servers + 1)
    assert (more <= fewer + 1e-9).all()


def test_no_server_is_refused() -> None:
    with pytest.raises(ValueError, match="num_servers is 0"):
        wait(np.zeros(1), np.ones(1), 0)


def test_a_prompt_takes_its_chunks_and_sees_what_is_cached() -> None:
    one = kind()
    assert prefill_s_of(one, 2500, 0) == pytest.approx(2.5)
    pairs = kind(performance=type(one.performance)(0.0, 0.0, 0.0, 0.0, 1e-6))
    assert prefill_s_of(pairs, 1500, 1000) == pytest.approx(1e-6 * (1000 * 1500 + 500 * 2250))


def test_answers_alone_grow_as_fast_as_their_batch_allows() -> None:
    jobs = jobs_of(arrivals([0.0, 1000.0], output_tokens=101), kind())
    met = meet_aggregated(jobs, kind(), 1)
    assert met.ttft_s == pytest.approx([1.0, 1.0])
    assert met.itl_s == pytest.approx([0.001, 0.001], rel=0.01)


def test_a_prompt_beside_an_answer_costs_it_a_token_a_chunk() -> None:
    """The second prompt comes right after the first: 3 chunks of a second each, one token each."""
    asked = arrivals([0.0, 1.0], output_tokens=6)._replace(new_tokens=np.array([1000.0, 3000.0]))
    met = meet_aggregated(jobs_of(asked, kind()), kind(), 1)
    # Of five steps three take a second, two a millisecond.
    assert met.itl_s[0] == pytest.approx((3 + 2 * 0.001) / 5, rel=0.02)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_tokens_between_prompts_are_those_of_a_queue_stepped_through(seed: int, num_workers: int) -> None:
    rng = random.Random(seed)
    times = np.cumsum([rng.expovariate(num_workers / 1.6) for _ in range(30)]).tolist()
    asked = arrivals(times, tokens=1000)._replace(
        new_tokens=np.array([float(rng.randrange(100, 4000)) for _ in times]),
        output_tokens=np.array([float(rng.randrange(1, 300)) for _ in times]),
    )
    still = kind(performance=type(kind().performance)(0.01, 0.0, 0.0, 0.001, 0.0))
    jobs = jobs_of(asked, still)
    met = meet_aggregated(jobs, still, num_workers)
    begins, servers = wait(jobs.arrival_s, jobs.prefill_s, num_workers)
    for i in range(len(times)):
        spans = [
            (begins[j], begins[j] + jobs.prefill_s[j], asked.new_tokens[j])
            for j in range(len(times))
            if servers[j] == servers[i] and j != i
        ]
        expected = _naive_itl(begins[i] + jobs.prefill_s[i], asked.output_tokens[i], spans)
        if expected is not None:
            assert met.itl_s[i] == pytest.approx(expected, rel=0.02, abs=1e-3)


def _naive_itl(first_s: float, output_tokens: float, spans: list[tuple[float, float, float]]) -> float | None:
    """Step by step: through the chunks of other prompts, and 10 ms a step between them."""
    now_s, left = first_s, output_tokens - 1
    if left < 1:
        return None
    coming = sorted(span for span in spans if span[1] > first_s + 1e-9)
    for start_s, end_s, tokens in coming:
        idle_steps = (start_s - now_s) / 0.01
        if left <= idle_steps:
            break
        left -= max(idle_steps, 0.0)
        chunks = math.ceil(tokens / 1000)
        if left <= chunks:
            return (start_s + (end_s - start_s) * left / chunks - first_s) / (output_tokens - 1)
        left, now_s = left - chunks, end_s
    return (now_s + left * 0.01 - first_s) / (output_tokens - 1)


def test_decode_workers_are_not_disturbed_by_prompts() -> None:
    jobs = jobs_of(poisson(2.0, 400, output_tokens=101), kind())
    met = meet_disaggregated(jobs, kind(handoff_s=0.5), 3, 1)
    # Two a second that take 100 steps: between them and a fifth of one are on the way at a time.
    assert float(np.nanquantile(met.itl_s, 0.95)) <= 0.002
    assert float(met.ttft_s.min()) == pytest.approx(1.501, abs=0.001)


def test_memory_is_told_by_the_busiest_time() -> None:
    jobs = jobs_of(arrivals([0.0] * 10, output_tokens=201), kind())
    met = meet_disaggregated(jobs, kind(max_num_seqs=1000), 10, 2)
    assert met.kv_share == pytest.approx(10 * 1100.5 / 100_000 / 2, rel=0.01)


def test_steps_of_many_batches_are_those_of_the_model() -> None:
    one = kind(performance=type(kind().performance)(0.01, 0.001, 1e-7, 0.001, 0.0))
    jobs = jobs_of(poisson(20.0, 300, tokens=100, output_tokens=50), one)
    met = meet_disaggregated(jobs, one, 8, 2)
    lone = one.performance.step_s(StepShape(1, 125))
    assert (met.itl_s >= lone * 0.99).all()
    assert float(met.itl_s.max()) > lone * 1.2
