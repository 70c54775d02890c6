"""Who decides where a simulated request goes: our routing core, or a baseline to compare it with.

Baselines see what the routers of other systems see: their own placements, and, if they ask for it, the index.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from armature.index.prefix_index import PrefixIndex
from armature.routing.decision import Placed, Query, Rejected
from armature.routing.policy import Policy
from armature.routing.router import RoutingCore
from armature.routing.worker import Load, Worker


class Rng(Protocol):
    """A seeded source of numbers; `random.Random` is one."""

    def random(self) -> float:
        """At least 0 and below 1."""
        ...


class Placement(Protocol):
    """What the simulator asks and tells."""

    index: PrefixIndex | None
    """Fed with the workers' events; None if they are of no interest."""

    def place(self, query: Query, now_s: float) -> str | Rejected:
        """The worker for a request."""
        ...

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        """A worker has told its load."""
        ...

    def first_token(self, request_id: str) -> None: ...

    def finish(self, request_id: str) -> None: ...


class Seconds:
    """Our own: the routing core, as the router service runs it."""

    def __init__(self, core: RoutingCore, workers: Sequence[Worker]) -> None:
        self._core = core
        self.index: PrefixIndex | None = core.index
        for worker in workers:
            core.put_worker(worker)

    def place(self, query: Query, now_s: float) -> str | Rejected:
        outcome = self._core.place(query, now_s)
        return outcome.chosen.decode_id if isinstance(outcome, Placed) else outcome

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        self._core.report(worker_id, load, now_s)

    def first_token(self, request_id: str) -> None:
        self._core.first_token("", request_id)

    def finish(self, request_id: str) -> None:
        self._core.finish("", request_id)


class Baseline:
    """Counts the requests of each worker; `choose` is what makes a policy of it."""

    def __init__(self, worker_ids: Sequence[str], choose: Callable[[dict[str, int]], str]) -> None:
        self.index: PrefixIndex | None = None
        self._choose = choose
        self._requests = dict.fromkeys(worker_ids, 0)
        self._placed: dict[str, str] = {}

    def place(self, query: Query, now_s: float) -> str | Rejected:
        worker_id = self._placed[query.request_id] = self._choose(self._requests)
        self._requests[worker_id] += 1
        return worker_id

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        pass

    def first_token(self, request_id: str) -> None:
        pass

    def finish(self, request_id: str) -> None:
        self._requests[self._placed.pop(request_id)] -= 1


class Dynamo:
    """NVIDIA Dynamo 1.6's published cost with its defaults, lowest first, in blocks.

    Prompt blocks still to be computed on the worker, the newcomer's less its cached ones included, and blocks of
    sequences in flight there, each distinct one once, the newcomer's included. It counts only its own placements.
    """

    def __init__(self, workers: Sequence[Worker], rng: Rng) -> None:
        self.index: PrefixIndex | None = PrefixIndex()
        self._rng = rng
        self._block_size = workers[0].block_size
        self._prefill: dict[str, float] = {worker.worker_id: 0.0 for worker in workers}
        self._active: dict[str, Counter[int]] = {worker.worker_id: Counter() for worker in workers}
        self._tails = dict.fromkeys(self._active, 0)
        """Partial blocks at the ends of prompts, which nobody shares."""
        self._placed: dict[str, tuple[str, float, Query]] = {}

    def place(self, query: Query, now_s: float) -> str | Rejected:
        depths = self.index.match(query.hashes) if self.index else {}
        blocks, tail = query.prompt_tokens / self._block_size, query.prompt_tokens % self._block_size > 0
        best, best_key = "", (math.inf, 0.0)
        for worker_id, active in self._active.items():
            uncached = max(blocks - depths.get(worker_id, 0), 0.0)
            incoming = sum([block not in active for block in query.hashes]) + tail
            cost = self._prefill[worker_id] + uncached + len(active) + self._tails[worker_id] + incoming
            # Equals are drawn among at random, as in the original.
            key = (cost, self._rng.random())
            if key < best_key:
                best, best_key = worker_id, key
        uncached = max(blocks - depths.get(best, 0), 0.0)
        self._prefill[best] += uncached
        self._active[best].update(query.hashes)
        self._tails[best] += tail
        self._placed[query.request_id] = (best, uncached, query)
        return best

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        pass

    def first_token(self, request_id: str) -> None:
        worker_id, uncached, query = self._placed[request_id]
        self._prefill[worker_id] -= uncached
        self._placed[request_id] = (worker_id, 0.0, query)

    def finish(self, request_id: str) -> None:
        worker_id, uncached, query = self._placed.pop(request_id)
        active = self._active[worker_id]
        self._prefill[worker_id] -= uncached
        self._tails[worker_id] -= query.prompt_tokens % self._block_size > 0
        for block in query.hashes:
            active[block] -= 1
            if not active[block]:
                del active[block]


def _round_robin(workers: Sequence[Worker], rng: Rng) -> Placement:
    turn = 0

    def choose(requests: dict[str, int]) -> str:
        nonlocal turn
        turn += 1
        return workers[(turn - 1) % len(workers)].worker_id

    return Baseline([worker.worker_id for worker in workers], choose)


def _random(workers: Sequence[Worker], rng: Rng) -> Placement:
    worker_ids = [worker.worker_id for worker in workers]
    return Baseline(worker_ids, lambda requests: worker_ids[int(rng.random() * len(worker_ids))])


def _power_of_two(workers: Sequence[Worker], rng: Rng) -> Placement:
    """The less busy of two drawn at random (Mitzenmacher 2001)."""
    worker_ids = [worker.worker_id for worker in workers]

    def choose(requests: dict[str, int]) -> str:
        first = int(rng.random() * len(worker_ids))
        second = (first + 1 + int(rng.random() * (len(worker_ids) - 1))) % len(worker_ids)
        return min(worker_ids[first], worker_ids[second], key=requests.__getitem__)

    return Baseline(worker_ids, choose)


def _least_loaded(workers: Sequence[Worker], rng: Rng) -> Placement:
    """The one with the fewest requests; equals at random."""
    worker_ids = [worker.worker_id for worker in workers]
    return Baseline(worker_ids, lambda requests: min(worker_ids, key=lambda one: (requests[one], rng.random())))


POLICIES: dict[str, Callable[[Sequence[Worker], Rng], Placement]] = {
    "round_robin": _round_robin,
    "random": _random,
    "power_of_two": _power_of_two,
    "least_loaded": _least_loaded,
    "dynamo": Dynamo,
    "seconds": lambda workers, rng: Seconds(RoutingCore(), workers),
}
"""By name; `seconds` is ours."""


def placement(policy: str, workers: Sequence[Worker], rng: Rng, weights: Policy | None = None) -> Placement:
    """A fresh placement of a named policy; `weights` are for ours.

    Raises:
        ValueError: there is no such policy; the message lists those that there are.
    """
    make = POLICIES.get(policy)
    if make is None:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    if policy == "seconds" and weights is not None:
        return Seconds(RoutingCore(weights), workers)
    return make(workers, rng)
