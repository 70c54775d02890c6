"""Who sends a request and what that entitles to: found out once, where the request comes in.

The caller travels in the context of the task that serves the request, so that no surface can forget to pass it on.
"""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """What a tenant may use, over all gateways; 0: as much as there is."""

    requests_per_min: int = 0
    tokens_per_min: int = 0
    """Of prompts and answers together."""
    concurrent_requests: int = 0

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.requests_per_min or self.tokens_per_min or self.concurrent_requests)


UNLIMITED = TenantLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One tenant, as its requests see it."""

    tenant: str
    cache_namespace: str
    """Requests share cached KV within it and never beyond."""
    limits: TenantLimits = UNLIMITED


ANYBODY = Caller(tenant="default", cache_namespace="")
"""Everybody, where no keys are configured."""

_current: ContextVar[Caller] = ContextVar("caller")


def set_caller(caller: Caller) -> None:
    """The rest of this task is done for `caller`."""
    _current.set(caller)


def found_caller() -> Caller | None:
    """For whom this task works, if anybody has found out."""
    return _current.get(None)
