"""A client's hints as they travel, and as the cores take them."""

from armature.routing.hints import NO_HINTS, Hints
from armature.v1 import hints_pb2


def hints_of(message: hints_pb2.Hints) -> Hints:
    """What a message says; an empty one says nothing.

    Raises:
        ValueError: a number is out of its range.
    """
    if not message.ByteSize():
        return NO_HINTS
    weight = message.latency_sensitivity if message.HasField("latency_sensitivity") else NO_HINTS.latency_sensitivity
    return Hints(
        priority=message.priority,
        latency_sensitivity=weight,
        ttft_target_s=message.ttft_target_s,
        expected_output_tokens=message.expected_output_tokens,
        cache_ttl_s=message.cache_ttl_s,
        speculative_prefill=message.speculative_prefill,
    )


def hints_message(hints: Hints) -> hints_pb2.Hints | None:
    """Hints to send; None if nothing was said."""
    if hints is NO_HINTS or hints == NO_HINTS:
        return None
    return hints_pb2.Hints(
        priority=hints.priority,
        latency_sensitivity=hints.latency_sensitivity,
        ttft_target_s=hints.ttft_target_s,
        expected_output_tokens=hints.expected_output_tokens,
        cache_ttl_s=hints.cache_ttl_s,
        speculative_prefill=hints.speculative_prefill,
    )
