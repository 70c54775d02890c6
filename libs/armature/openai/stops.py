"""Stop strings across token boundaries.

The answer ends before the first stop string, where *first* is the one that is complete first, character by character;
of two that are complete at the same character, the longer one. So the outcome does not depend on how the text arrives.
"""

from collections.abc import Sequence


class StopStrings:
    """Passes text through and holds back what may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.hit: str | None = None
        """The stop string that has ended the answer."""

    @property
    def is_hit(self) -> bool:
        return self.hit is not None

    @property
    def held(self) -> int:
        """Characters held back."""
        return len(self._held)

    def feed(self, text: str) -> str:
        """What may be sent of the text so far; nothing once `is_hit`."""
        if self.is_hit:
            return ""
        window = self._held + text
        cut = self._first_stop(window)
        if cut is not None:
            start, self.hit = cut
            self._held = ""
            return window[:start]
        keep = self._possible_beginning(window)
        self._held = window[len(window) - keep :]
        return window[: len(window) - keep]

    def finish(self) -> str:
        """What was held back; the answer has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, window: str) -> tuple[int, str] | None:
        """Where the stop string that is complete first begins, and which it is."""
        best: tuple[int, int, str] | None = None
        for stop in self._stops:
            start = window.find(stop)
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        return None if best is None else best[1:]

    def _possible_beginning(self, window: str) -> int:
        """Length of the longest end of `window` with which a stop string begins."""
        for size in range(min(len(window), self._longest - 1), 0, -1):
            end = window[len(window) - size :]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
