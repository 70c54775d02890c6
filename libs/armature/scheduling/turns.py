"""Tenants that wait for one engine take turns, by the tokens that their prompts are.

Start-time fair queueing (Goyal, Vin and Cheng 1996), with some memory: a request's turn is where its tenant's work
before it ends, but at most a little before where the engine is by now. So who sends more than others only waits longer
himself, and who stays below an equal share goes before all that others have piled up, also with a few requests at once.
Having been absent earns no more than that. With one tenant it is the order of arrival.

When there is nothing left to compute, everybody begins anew. Otherwise whoever had a little more than another one while
there was room for both would stand behind all that the other one's credit lets it pile up later.
"""


class Turns:
    """Hands out turns, lowest first. A request's turn never changes, so queues can be sorted by it.

    A tenant that has had less than others may be ahead by `credit` tokens.
    """

    def __init__(self, credit: int) -> None:
        self._credit = credit
        self._now = 0.0
        """The latest turn that has begun, or later by as much as everybody has to begin anew."""
        self._latest: dict[str, tuple[float, float]] = {}
        """Each tenant's latest turn and where its work ends, unless that is longer ago than credit reaches."""

    def take(self, tenant: str, tokens: int) -> float:
        """The turn of a request that comes now and is so many tokens of work."""
        turn = self._now - self._credit
        if tenant in self._latest:
            turn = max(turn, self._latest[tenant][1])
        self._latest[tenant] = turn, turn + tokens
        return turn

    def begin(self, turn: float) -> None:
        """A request begins to be computed."""
        self._now = max(self._now, turn)

    def save(self, tenant: str, tokens: int) -> None:
        """A request is so many tokens less work than was thought: they were cached."""
        if tenant in self._latest:
            turn, end = self._latest[tenant]
            self._latest[tenant] = turn, max(turn, end - tokens)  # those that wait keep their order

    def tidy(self) -> None:
        """Forget tenants whose work ended longer ago than credit reaches."""
        past = self._now - self._credit
        self._latest = {tenant: (turn, end) for tenant, (turn, end) in self._latest.items() if end > past}

    def rest(self) -> None:
        """Nothing is left to compute: who has had how much counts no more."""
        self._now = max([self._now, *(end + self._credit for _, end in self._latest.values())])
        self._latest.clear()
