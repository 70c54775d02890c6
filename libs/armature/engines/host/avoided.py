"""Whom not to wait for: addresses that have just failed in a way that the next call to them would, too."""

import time

AVOID_S = 5.0
"""After a sign of death nobody waits there again for so long; then membership tells routers as well."""


class Avoided:
    """Those of one worker."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}

    def __contains__(self, address: str) -> bool:
        return self._until_s.get(address, 0.0) > time.monotonic()

    def add(self, address: str) -> None:
        now_s = time.monotonic()
        self._until_s = {known: until_s for known, until_s in self._until_s.items() if until_s > now_s}
        self._until_s[address] = now_s + AVOID_S
