"""Collects what happens to requests and workers, and tells it in windows. Memory is bounded whatever comes.

The same object listens to routers and workers in the service, and to the gateway of a simulation.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from armature.planning.fleet import Fleet
from armature.planning.sketch import Sketch

Floats = NDArray[np.float64]

_MOST_ARRIVALS = 8192
"""Remembered one by one, for the pattern in which they come; further ones push the oldest out."""
_MOST_ENDS = 512
"""Requests that have ended, whose output and reuse stand for those that have not."""
_START_UPS = 16


class Arrivals(NamedTuple):
    """Requests in the order in which they came, in columns."""

    arrival_s: Floats
    new_tokens: Floats
    """Prompt tokens to compute, as far as is known or likely."""
    cached_tokens: Floats
    output_tokens: Floats

    @property
    def num_requests(self) -> int:
        return len(self.arrival_s)

    def since(self, from_s: float) -> "Arrivals":
        """Those that came then or later."""
        first = int(np.searchsorted(self.arrival_s, from_s))
        return Arrivals(*(column[first:] for column in self))


NO_ARRIVALS = Arrivals(*(np.zeros(0) for _ in range(4)))


class Backlog(NamedTuple):
    """What a worker has to do, as it reports."""

    waiting_prefill_tokens: int = 0
    running_seqs: int = 0
    used_tokens: int = 0
    """Of its KV memory, by requests that run."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a decision is made of: what has happened since the last one, and how things stand."""

    now_s: float
    since_s: float
    fleet: Fleet
    arrivals: Arrivals
    """Also earlier ones, as many as are remembered."""
    num_arrivals: int = 0
    """Since `since_s`."""
    in_flight: int = 0
    unanswered_tokens: int = 0
    """Prompt tokens of requests that have no first token yet, less what is likely to be cached."""
    ttft_s: Sketch = field(default_factory=Sketch)
    """Since `since_s`; likewise what follows."""
    itl_s: Sketch = field(default_factory=Sketch)
    queue_s: Sketch = field(default_factory=Sketch)
    """Between arrival and start of computing, where it is known."""
    failures: int = 0
    start_up_s: float = 0.0
    """The longest of the last start-ups; 0: none was seen."""
    backlogs: tuple[Backlog, ...] = ()
    """Of the workers that are ready."""


class _Ended(NamedTuple):
    output_tokens: int
    cached_share: float


class Observer:
    """Hears of requests one by one; `take` gives what has come together since the last time."""

    def __init__(self, since_s: float = 0.0) -> None:
        """Nothing was heard before `since_s`."""
        self._asked: deque[tuple[float, int]] = deque(maxlen=_MOST_ARRIVALS)
        self._ended: deque[_Ended] = deque(maxlen=_MOST_ENDS)
        self._start_ups: deque[float] = deque(maxlen=_START_UPS)
        self._unanswered_tokens = 0
        self._in_flight = 0
        self._since_s = since_s
        self._begin()

    def _begin(self) -> None:
        self._ttft_s, self._itl_s, self._queue_s = Sketch(), Sketch(), Sketch()
        self._failures = 0
        self._num_arrivals = 0

    # --- what happens

    def arrive(self, now_s: float, prompt_tokens: int, *, is_known: bool = False) -> None:
        """A request has come; one that is known was told before, and lost sight of."""
        if not is_known:
            self._ask(now_s, prompt_tokens)
            self._num_arrivals += 1
        self._in_flight += 1
        self._unanswered_tokens += prompt_tokens

    def first_token(self, ttft_s: float, prompt_tokens: int, queue_s: float | None = None) -> None:
        """A request has its first token, so long after it came."""
        self._ttft_s.add(ttft_s)
        self._unanswered_tokens -= prompt_tokens
        if queue_s is not None:
            self._queue_s.add(queue_s)

    def finish(self, prompt_tokens: int, cached_tokens: int, output_tokens: int, decode_s: float) -> None:
        """A request has ended, `decode_s` after its first token."""
        self._in_flight -= 1
        self._ended.append(_Ended(output_tokens, cached_tokens / prompt_tokens))
        if output_tokens > 1:
            self._itl_s.add(decode_s / (output_tokens - 1))

    def fail(self, prompt_tokens: int, *, has_token: bool) -> None:
        """A request was not served to its end."""
        self._failures += 1
        self.lose(prompt_tokens, has_token=has_token)

    def recall(self, at_s: float, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        """A request has come and gone before there was an observer: it tells the pattern."""
        self._ask(at_s, prompt_tokens)
        self._ended.append(_Ended(output_tokens, cached_tokens / prompt_tokens))

    def lose(self, prompt_tokens: int, *, has_token: bool) -> None:
        """A request can't be followed any more; nobody says that it failed."""
        self._in_flight -= 1
        if not has_token:
            self._unanswered_tokens -= prompt_tokens

    def started(self, took_s: float) -> None:
        """A worker has become ready, so long after it was asked for."""
        self._start_ups.append(took_s)

    def _ask(self, at_s: float, prompt_tokens: int) -> None:
        """Arrivals stay in order: of two routers' news the later may tell of the earlier."""
        self._asked.append((max(at_s, self._asked[-1][0]) if self._asked else at_s, prompt_tokens))

    # --- what is told

    def take(self, now_s: float, fleet: Fleet, backlogs: tuple[Backlog, ...] = ()) -> Seen:
        """What has happened since the last call; the next one begins anew."""
        share = self._cached_share
        seen = Seen(
            now_s=now_s,
            since_s=self._since_s,
            fleet=fleet,
            arrivals=self._arrivals(share),
            num_arrivals=self._num_arrivals,
            in_flight=self._in_flight,
            unanswered_tokens=round(self._unanswered_tokens * (1 - share)),
            ttft_s=self._ttft_s,
            itl_s=self._itl_s,
            queue_s=self._queue_s,
            failures=self._failures,
            start_up_s=max(self._start_ups, default=0.0),
            backlogs=backlogs,
        )
        self._since_s = now_s
        self._begin()
        return seen

    @property
    def _cached_share(self) -> float:
        """Of prompts that have ended lately, in the mean."""
        return sum([one.cached_share for one in self._ended]) / len(self._ended) if self._ended else 0.0

    def _arrivals(self, cached_share: float) -> Arrivals:
        """Prompts as they came; of outputs only the distribution is known, so those that ended are dealt out in turn,
        the last ones to the last prompts: both may have changed together."""
        if not self._asked:
            return NO_ARRIVALS
        asked = np.array(self._asked, dtype=np.float64)
        outputs = np.array([one.output_tokens for one in self._ended] or [1], dtype=np.float64)
        cached = np.floor(asked[:, 1] * cached_share)
        return Arrivals(asked[:, 0], asked[:, 1] - cached, cached, np.resize(outputs[::-1], len(asked))[::-1])
