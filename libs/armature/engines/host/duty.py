"""What a worker does in its cell. It may change while the worker runs: engine, weights and cached KV stay.

Whoever has not heard of a change yet is still served for a while; afterwards it is refused as by a worker that drains,
so that others serve it. What is being served goes on to its end in any case.
"""

import time
from collections.abc import Callable

from armature.runtime.errors import UnavailableError
from armature.v1 import common_pb2 as common

GRACE_S = 10.0
"""For requests that were placed before the news had come round: a lease's time, after which all routers know."""

Now = Callable[[], float]


class Duty:
    """A worker's role."""

    def __init__(self, role: "common.Role.ValueType", now_s: Now = time.monotonic) -> None:
        self.role = role
        self._former = role
        self._changed_s = 0.0
        self._now_s = now_s

    def change(self, role: "common.Role.ValueType") -> "common.Role.ValueType":
        """Have another role from now on, and return the former one, which is given up after a while."""
        former = self.role
        if role != former:
            self._former, self.role, self._changed_s = former, role, self._now_s()
        return former

    @property
    def has_helpers(self) -> bool:
        """Whether prompts may be computed by others."""
        return self.role == common.ROLE_DECODE

    def check_answers(self) -> None:
        """Raise `UnavailableError` unless it produces tokens."""
        if common.ROLE_PREFILL in self._roles and len(self._roles) == 1:
            raise UnavailableError("this worker computes prompts for others and answers none")

    @property
    def computes_for_others(self) -> bool:
        """Whether it computes prompts that others answer."""
        return common.ROLE_PREFILL in self._roles

    @property
    def _roles(self) -> "set[common.Role.ValueType]":
        """Those that it serves at the moment."""
        in_grace = self._former != self.role and self._now_s() < self._changed_s + GRACE_S
        return {self.role, self._former} if in_grace else {self.role}
