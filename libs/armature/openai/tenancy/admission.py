"""One request of a tenant, from when it is taken to its end: what it was charged and what it has used.

Like the caller it travels in the context of the task that serves it.
"""

import math
from contextvars import ContextVar

from armature.openai.errors import ApiError
from armature.openai.tenancy.allowance import WINDOW_S, Verdict
from armature.openai.tenancy.caller import Caller
from armature.openai.tenancy.quotas import Quotas

ASSUMED_ANSWER_TOKENS = 512
"""Charged at first for answers of which nobody said how long they may be."""

_current: "ContextVar[Admission]" = ContextVar("admission")


class Admission:
    """`close` it in any case. Made by `begin`, which makes it the current task's."""

    __slots__ = ("_charged", "_is_charged", "_quotas", "_used", "_verdict", "caller", "timeout_s")

    def __init__(self, caller: Caller, quotas: Quotas, timeout_s: float = math.inf) -> None:
        self.caller = caller
        self.timeout_s = timeout_s
        """How long the client waits for the whole answer, as it says itself."""
        self._quotas = quotas
        self._verdict: Verdict | None = None
        self._is_charged = False
        self._charged = 0
        self._used = 0

    async def charge(self, tokens: int) -> None:
        """Ask for a request of about so many tokens.

        Raises:
            ApiError: 429, a limit is in the way.
        """
        if self._is_charged or not self.caller.limits:
            return
        verdict = self._verdict = await self._quotas.admit(self.caller, tokens)
        if verdict is not None and verdict.denied_by:
            raise rate_limited(self.caller, verdict.denied_by, verdict.retry_after_s)
        self._is_charged = True
        self._charged = tokens

    def used(self, tokens: int) -> None:
        """So many tokens more were used, of prompt and answer."""
        self._used += tokens

    def close(self) -> None:
        """The request has ended."""
        if self._is_charged:
            self._is_charged = False
            self._quotas.leave(self.caller, self._charged - self._used)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is left, in OpenAI's words; nothing where there are no limits."""
        verdict, limits = self._verdict, self.caller.limits
        if verdict is None:
            return []
        made: list[tuple[str, str]] = []
        for name, limit, left in (
            ("requests", limits.requests_per_min, verdict.requests_left),
            ("tokens", limits.tokens_per_min, verdict.tokens_left),
        ):
            if limit:
                made += [
                    (f"x-ratelimit-limit-{name}", str(limit)),
                    (f"x-ratelimit-remaining-{name}", str(max(0, math.floor(left)))),
                    (f"x-ratelimit-reset-{name}", duration((limit - left) * WINDOW_S / limit)),
                ]
        return [(name.encode(), value.encode()) for name, value in made]


def begin(caller: Caller, quotas: Quotas, timeout_s: float = math.inf) -> Admission:
    """The current task begins to serve a request, for whose answer the client waits so long.

    Raises:
        ApiError: 429, the tenant can't send requests now; found out here without asking anybody.
    """
    admission = Admission(caller, quotas, timeout_s)
    _current.set(admission)
    if caller.limits and (wait_s := quotas.wait_s(caller)) > 0:
        raise rate_limited(caller, "requests_per_min", wait_s)
    return admission


def current_admission() -> Admission | None:
    """Of the request that this task serves; None: it has not been admitted."""
    return _current.get(None)


def rate_limited(caller: Caller, limit: str, retry_after_s: float) -> ApiError:
    """`limit` is in the way; it is also the error's `param`, for programs."""
    allowed = getattr(caller.limits, limit)
    message = f"The limit of '{caller.tenant}' is reached: {limit} is {allowed}"
    return ApiError(429, message, param=limit, code="rate_limit_exceeded", retry_after_s=max(retry_after_s, 1.0))


def duration(seconds: float) -> str:
    """As OpenAI writes them: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    if minutes >= 1:
        return f"{int(minutes)}m{math.ceil(rest)}s"
    return f"{math.ceil(rest * 100) / 100:g}s"
