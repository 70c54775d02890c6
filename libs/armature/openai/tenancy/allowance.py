"""What a tenant may still use: a bucket of requests, a bucket of tokens, and a number of requests at a time.

A bucket holds a minute's worth and refills steadily, so in any stretch of time a tenant gets at most that and what
flowed in meanwhile. Tokens are charged by estimate and settled by use, so their bucket can be overdrawn; a request that
is larger than the bucket needs a full one. `allowance.lua` is the same arithmetic, for what all gateways share.
"""

from typing import NamedTuple

from armature.openai.tenancy.caller import TenantLimits

ADMITTED, REQUESTS, TOKENS, CONCURRENT = "", "requests_per_min", "tokens_per_min", "concurrent_requests"
"""Verdicts; all but the first name the limit that was in the way."""
WINDOW_S = 60.0
UNLIMITED = 1e300
"""In a bucket that has no limit, so that one that is set later finds it full."""
_ROUNDING = 1e-6


class Verdict(NamedTuple):
    """Whether a request may go on, and what is left."""

    denied_by: str
    requests_left: float
    tokens_left: float
    """Negative if overdrawn."""
    retry_after_s: float = 0.0
    """When there will be enough, if nobody else takes it; 0 if that is not a matter of time alone."""


class Allowance:
    """One tenant's buckets, full at first."""

    __slots__ = ("requests", "since_s", "tokens")

    def __init__(self, now_s: float) -> None:
        self.requests = self.tokens = UNLIMITED
        self.since_s = now_s

    def admit(self, limits: TenantLimits, tokens: float, under_way: int, now_s: float) -> Verdict:
        """Charge a request of so many tokens, `under_way` others being served, unless a limit is in the way."""
        self._refill(limits, now_s)
        enough = min(tokens, limits.tokens_per_min)
        if 0 < limits.concurrent_requests <= under_way:
            return Verdict(CONCURRENT, self.requests, self.tokens)
        if limits.requests_per_min and self.requests < 1 - _ROUNDING:
            wait_s = (1 - self.requests) * WINDOW_S / limits.requests_per_min
            return Verdict(REQUESTS, self.requests, self.tokens, wait_s)
        if limits.tokens_per_min and self.tokens < enough - _ROUNDING:
            wait_s = (enough - self.tokens) * WINDOW_S / limits.tokens_per_min
            return Verdict(TOKENS, self.requests, self.tokens, wait_s)
        self.requests -= 1 if limits.requests_per_min else 0
        self.tokens -= tokens if limits.tokens_per_min else 0
        return Verdict(ADMITTED, self.requests, self.tokens)

    def give_back(self, limits: TenantLimits, tokens: float, now_s: float) -> None:
        """So many tokens were charged and not used; negative: used and not charged."""
        self._refill(limits, now_s)
        self.tokens = min(limits.tokens_per_min or UNLIMITED, self.tokens + tokens)

    def take_over(self, verdict: Verdict, now_s: float) -> None:
        """Go on from what somebody else, who knows of all gateways, has found."""
        self.requests, self.tokens, self.since_s = verdict.requests_left, verdict.tokens_left, now_s

    def _refill(self, limits: TenantLimits, now_s: float) -> None:
        minutes = max(0.0, now_s - self.since_s) / WINDOW_S
        self.requests = min(limits.requests_per_min or UNLIMITED, self.requests + minutes * limits.requests_per_min)
        self.tokens = min(limits.tokens_per_min or UNLIMITED, self.tokens + minutes * limits.tokens_per_min)
        self.since_s = max(self.since_s, now_s)
