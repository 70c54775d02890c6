"""Holds tenants to their limits, together with all other gateways of the cell through Redis.

Whatever waits when the last answer comes goes out as one script call: so there is one call at a time, each request
waits for two at most, and what a gateway says of itself arrives in order. How many requests it serves it says anew with
every call and under a lease, so nothing is held for ever by a gateway that died or an answer that was lost.

Redis being away stops nobody and makes nobody wait longer than one call may take: each gateway then goes on alone from
what it knew last, by the same limits, so that a tenant gets at most its limit from each of them.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prometheus_client import Counter

from armature.openai.tenancy.allowance import ADMITTED, CONCURRENT, REQUESTS, TOKENS, Allowance, Verdict
from armature.openai.tenancy.caller import Caller
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

log = logging.getLogger(__name__)

LEASE_S = 15.0
"""A gateway that is silent for so long serves nothing any more."""
LEAVE_PAUSE_S = 0.05
"""That a request has ended waits so long for one that begins, to share its call."""
_SCRIPT = (Path(__file__).parent / "allowance.lua").read_text()
_VERDICTS = (ADMITTED, REQUESTS, TOKENS, CONCURRENT)
_GIVE_BACK, _ADMIT = 0, 1

_decided = Counter("armature_gateway_quota_calls_total", "Calls that decided on limits, by where.", ["where"])
_denied = Counter("armature_gateway_rate_limited_total", "Requests refused by their tenant's limits.", ["limit"])


class _Operation(NamedTuple):
    kind: int
    tokens: float
    answer: "asyncio.Future[Verdict] | None"


@dataclass(slots=True)
class _Account:
    """What this gateway knows of a tenant."""

    caller: Caller
    allowance: Allowance
    under_way: int = 0
    waiting: list[_Operation] = field(default_factory=list[_Operation])
    no_requests_until_s: float = 0.0


class Quotas:
    """Tenants without limits cost nothing here, and no word to Redis. Its times are the event loop's."""

    def __init__(self, own_id: str, prefix: str, redis: RedisClient | None, *, timeout_s: float = 0.05) -> None:
        self._own_id = own_id
        self._prefix = prefix
        self._redis = redis
        self._timeout_s = timeout_s
        self._accounts: dict[str, _Account] = {}
        self._has_work = asyncio.Event()
        self._now_s = asyncio.get_running_loop().time
        self._said_at_s = 0.0
        self._telling: asyncio.TimerHandle | None = None

    def wait_s(self, caller: Caller) -> float:
        """For how long this tenant can't send requests anyway, as far as is known here."""
        account = self._accounts.get(caller.tenant)
        if account is None or account.caller.limits != caller.limits:  # others than those that were in the way
            return 0.0
        return account.no_requests_until_s - self._now_s()

    async def admit(self, caller: Caller, tokens: int) -> Verdict | None:
        """Charge a request of so many tokens; None: there are no limits. If admitted, `leave` when it has ended."""
        if not caller.limits:
            return None
        account = self._account(caller)
        if self._redis is None:
            verdict = self._admit_alone(account, tokens)
        else:
            answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
            self._add(account, _Operation(_ADMIT, tokens, answer))
            verdict = await answer
        if verdict.denied_by:
            _denied.labels(verdict.denied_by).inc()
            if verdict.denied_by == REQUESTS:
                account.no_requests_until_s = self._now_s() + verdict.retry_after_s
        return verdict

    def leave(self, caller: Caller, tokens: float) -> None:
        """An admitted request has ended; it was charged `tokens` more than it used."""
        account = self._account(caller)
        account.under_way -= 1
        if self._redis is None:
            account.allowance.give_back(caller.limits, tokens, self._now_s())
        else:
            account.waiting.append(_Operation(_GIVE_BACK, tokens, None))
            if self._telling is None:
                self._telling = asyncio.get_running_loop().call_later(LEAVE_PAUSE_S, self._has_work.set)

    async def run(self) -> None:
        """Talk to Redis until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEASE_S / 3):
                    await self._has_work.wait()
            self._has_work.clear()
            if self._telling is not None:
                self._telling.cancel()
                self._telling = None
            is_due = self._now_s() >= self._said_at_s + LEASE_S / 3
            work = {
                name: account.waiting
                for name, account in self._accounts.items()
                if account.waiting or (is_due and account.under_way and account.caller.limits.concurrent_requests)
            }
            for name in work:
                self._accounts[name].waiting = []
            if work:
                await self._decide(work)
            if is_due:
                self._said_at_s = self._now_s()
                self._forget_idle()

    def _account(self, caller: Caller) -> _Account:
        account = self._accounts.get(caller.tenant)
        if account is None:
            account = self._accounts[caller.tenant] = _Account(caller, Allowance(self._now_s()))
        account.caller = caller
        return account

    def _add(self, account: _Account, operation: _Operation) -> None:
        account.waiting.append(operation)
        self._has_work.set()

    async def _decide(self, work: Mapping[str, Sequence[_Operation]]) -> None:
        try:
            answers = iter(await self._ask(work))
        except RedisUnavailableError:
            _decided.labels("here").inc()
            for name, operations in work.items():
                self._decide_alone(self._accounts[name], operations)
            return
        _decided.labels("redis").inc()
        for name, operations in work.items():
            account = self._accounts[name]
            for operation in operations:
                denied_by, requests, tokens, wait = next(answers).split()
                verdict = Verdict(_VERDICTS[int(denied_by)], float(requests), float(tokens), float(wait))
                account.allowance.take_over(verdict, self._now_s())
                self._tell(account, operation, verdict)

    async def _ask(self, work: Mapping[str, Sequence[_Operation]]) -> list[bytes]:
        assert self._redis is not None
        arguments: list[str | float] = [0, LEASE_S, self._own_id]
        for name, operations in work.items():
            account = self._accounts[name]
            limits = account.caller.limits
            arguments += [limits.requests_per_min, limits.tokens_per_min, limits.concurrent_requests]
            arguments += [account.under_way, len(operations)]
            for operation in operations:
                arguments += [operation.kind, operation.tokens]
        keys = [f"{self._prefix}{name}" for name in work]
        # Redis knows a script by its text: it is compiled once, and sending it spares a second way for when it is not.
        return await self._redis.call("EVAL", _SCRIPT, len(keys), *keys, *arguments, timeout_s=self._timeout_s)

    def _decide_alone(self, account: _Account, operations: Sequence[_Operation]) -> None:
        limits, allowance = account.caller.limits, account.allowance
        for operation in operations:
            if operation.kind == _GIVE_BACK:
                allowance.give_back(limits, operation.tokens, self._now_s())
            else:
                verdict = allowance.admit(limits, operation.tokens, account.under_way, self._now_s())
                self._tell(account, operation, verdict)

    def _admit_alone(self, account: _Account, tokens: float) -> Verdict:
        verdict = account.allowance.admit(account.caller.limits, tokens, account.under_way, self._now_s())
        account.under_way += not verdict.denied_by
        return verdict

    def _tell(self, account: _Account, operation: _Operation, verdict: Verdict) -> None:
        if operation.kind == _GIVE_BACK or operation.answer is None:
            return
        account.under_way += not verdict.denied_by
        if not operation.answer.cancelled():
            operation.answer.set_result(verdict)
        elif not verdict.denied_by:  # the client has left meanwhile
            self.leave(account.caller, operation.tokens)

    def _forget_idle(self) -> None:
        """Drop what a minute has made worthless, so that tenants that are gone cost no memory."""
        before_s = self._now_s() - 60.0
        for name, account in list(self._accounts.items()):
            if not (account.under_way or account.waiting) and account.allowance.since_s < before_s:
                del self._accounts[name]
