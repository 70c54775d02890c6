"""What a client tells of a request besides the prompt; none of it is needed, and nothing breaks if it is wrong."""

from dataclasses import dataclass

MAX_TTFT_TARGET_S = 86_400

RANGES = {
    "priority": (-10, 10),
    "latency_sensitivity": (0, 10),
    "ttft_target_s": (0, MAX_TTFT_TARGET_S),
    "expected_output_tokens": (0, 1 << 31),
    "cache_ttl_s": (0, 30 * 86_400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """Every default means: nothing was said.

    Raises:
        ValueError: a number is out of its range.
    """

    priority: int = 0
    """Higher goes first; -10 to 10."""
    latency_sensitivity: float = 1.0
    """What this request's waiting weighs against others'; 0 (a batch job) to 10."""
    ttft_target_s: float = 0.0
    """The first token is of use within this time from arrival; 0: no matter."""
    expected_output_tokens: int = 0
    cache_ttl_s: float = 0.0
    """How long the prompt's blocks are worth keeping after the answer."""
    speculative_prefill: bool = False
    """The next turn will come: have this turn's answer in the cache before it does."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be from {low} to {high}")


NO_HINTS = Hints()
