"""Who has had more of an engine lately than would be its share, by prompt tokens computed.

A step that has begun can't be stopped, so whoever comes meanwhile waits for its end. That should not be the end of a
long step of somebody who sends far more than others.
"""

OVER = 1.25
"""Times an equal share. With two tenants five eighths; chance alone brings nobody there who sends as much as others."""
FAR_OVER = 1.6
"""Likewise of who is alone with one prompt at the moment: with two tenants four fifths."""


class Shares:
    """Counts tokens by tenant over a window of the last `window_tokens` to twice as many."""

    def __init__(self, window_tokens: int) -> None:
        self._window_tokens = window_tokens
        self._tokens: dict[str, int] = {}
        """Of all tenants that have had any, over both halves."""
        self._total = 0
        self._recent: dict[str, int] = {}
        """The half that is being filled; then the one before."""
        self._before: dict[str, int] = {}
        self._room = window_tokens

    def note(self, tenant: str, tokens: int) -> None:
        """So many tokens of a tenant's prompts are computed."""
        self._recent[tenant] = self._recent.get(tenant, 0) + tokens
        self._tokens[tenant] = self._tokens.get(tenant, 0) + tokens
        self._total += tokens
        self._room -= tokens
        if self._room <= 0:
            self._turn_over()

    def is_over(self, tenant: str, times: float) -> bool:
        """Whether it has had more than so many times an equal share; never if nobody else is about."""
        return len(self._tokens) > 1 and self._tokens.get(tenant, 0) * len(self._tokens) > times * self._total

    def _turn_over(self) -> None:
        for tenant, tokens in self._before.items():
            self._total -= tokens
            self._tokens[tenant] -= tokens
            if not self._tokens[tenant]:
                del self._tokens[tenant]
        self._before, self._recent, self._room = self._recent, {}, self._window_tokens
