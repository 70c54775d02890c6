"""Whether a server that may be away answers, for its client: asked now and then while it does not, and told once."""

import logging

from armature.runtime.backoff import Backoff

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 5.0


class Outage:
    """While it lasts calls should fail at once, but for one try now and then, so that traffic never waits."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._backoff = Backoff(limit_s=_LONGEST_PAUSE_S)
        self._pause_until_s = 0.0
        self.is_up = True
        """Whether the last call that was tried was answered."""

    def pause_s(self, now_s: float) -> float:
        """Seconds until the next try; 0: now."""
        return max(0.0, self._pause_until_s - now_s)

    def lost(self, now_s: float, why: str) -> None:
        """A call was not answered."""
        self._pause_until_s = now_s + self._backoff.next_s()
        if self.is_up:
            self.is_up = False
            log.warning("%s does not answer: %s; going on without", self._server, why)

    def answered(self) -> None:
        """A call was."""
        self._backoff.reset()
        self._pause_until_s = 0.0
        if not self.is_up:
            self.is_up = True
            log.info("%s answers again", self._server)
