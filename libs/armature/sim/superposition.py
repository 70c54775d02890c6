"""The traffic of a larger service: several copies of a trace at once, each begun elsewhere in it.

More users don't do the same at the same moment, so copies are shifted against each other, each as a circle. They
share no contents: what one copy has in common with itself it has with no other.
"""

from dataclasses import replace

from armature.sim.synthetic import Rng
from armature.sim.trace import FIRST_ANSWER, Trace, TraceRequest


def superposed(trace: Trace, copies: int, rng: Rng, spread_s: float = float("inf")) -> Trace:
    """So many copies, shifted by up to `spread_s` to either side, or by anything; 0 keeps them in step.

    Raises:
        ValueError: there is no copy, the spread is negative, or contents can't be told apart any more.
    """
    if copies < 1:
        raise ValueError(f"copies is {copies}; it must be at least 1")
    if not spread_s >= 0:
        raise ValueError(f"the spread of copies is {spread_s} s; it must be at least 0")
    requests = list(trace.requests)
    if copies == 1 or not requests:
        return trace
    num_contents = 1 + max(max(one.contents) for one in requests)
    if copies * num_contents > FIRST_ANSWER:
        raise ValueError(f"{copies} copies are too many: at most {FIRST_ANSWER // num_contents} have contents apart")
    # The circle closes with one gap more than there are between requests.
    span_s = requests[-1].arrival_s * (len(requests) + 1) / len(requests)
    merged: list[TraceRequest] = []
    for copy in range(copies):
        shift_s = (2 * rng.random() - 1) * min(spread_s, span_s / 2)
        merged += [_shifted(one, copy, shift_s, span_s, copy * num_contents) for one in requests]
    merged.sort(key=lambda one: one.arrival_s)
    return replace(trace, requests=merged)


def _shifted(one: TraceRequest, copy: int, shift_s: float, span_s: float, first_content: int) -> TraceRequest:
    return TraceRequest(
        (one.arrival_s + shift_s) % span_s if span_s else one.arrival_s,
        one.prompt_tokens,
        one.output_tokens,
        [first_content + content for content in one.contents],
        one.tenant,
        f"{one.session_id}.{copy}" if one.session_id else "",
        one.priority,
    )
