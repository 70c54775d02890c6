"""Carries requests through the cell: has them placed, sends them off, and moves them when their worker dies.

As the live gateway does: what was answered is kept and counts as part of the prompt, the worker that failed is
excluded, and a request that has moved too often is given up. A client that is refused for overload comes again when it
was told to; its wait counts.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from armature.blocks.hashing import BlockDigest
from armature.routing.decision import Placed, Query, Rejected, RejectionCode
from armature.routing.hints import Hints
from armature.routing.queueing.outcome import Outcome
from armature.scheduling.request import FinishReason, Request, Reserved, Sampling, TokenOutput
from armature.sim.cell import CellShape
from armature.sim.clock import Clock
from armature.sim.handoffs import Handoffs
from armature.sim.pulls import Pulls
from armature.sim.record import Record
from armature.sim.router import Router
from armature.sim.routers import Routers, sequence_hashes
from armature.sim.site import Site
from armature.sim.trace import FIRST_ANSWER, ContentHasher, TraceRequest, prompt_token_ids

LAST_RESORT_PAUSE_S = 0.5
"""Before workers that have failed a request are tried again, because there are no others."""
HELD_PAUSE_S = 1.0
"""Between looks whether a worker has come for requests that wait for the first one."""
_LEAST_RETRY_S = 0.001


@dataclass(slots=True, eq=False)
class Flight:
    """A request that has not ended."""

    position: int
    asked: TraceRequest
    router: Router
    answered: int = 0
    """Output tokens that the client has, as far as they were told: with the first, at the end, at a worker's death."""
    attempt_id: str = ""
    site: Site | None = None
    prefill_id: str = ""
    """Empty also if nobody will be asked; likewise `pull_id`."""
    pull_id: str = ""
    migrations: int = 0
    excluded: list[str] = field(default_factory=list[str])
    request: Request | None = None
    """What its worker was sent, until it has answered."""
    tokens: "array[int] | None" = None
    """Prompt and answer so far, if they are at hand."""


class Fetching(NamedTuple):
    """How blocks come to workers that have not computed them."""

    handoffs: Handoffs
    pulls: Pulls


class Gateway:
    """All requests in flight. `on_end` is called whenever one has ended."""

    def __init__(
        self,
        cell: CellShape,
        clock: Clock,
        routers: Routers,
        sites: Mapping[str, Site],
        fetching: Fetching,
        on_end: Callable[[float], None],
        record: Record,
        *,
        holds: bool = False,
    ) -> None:
        """`holds`: requests wait while there is no worker at all, since one will be started for them."""
        self._cell = cell
        self._clock = clock
        self._routers = routers
        self._sites = sites
        self._handoffs, self._pulls = fetching
        self._on_end = on_end
        self._hasher = ContentHasher(cell.worker.block_size)
        self._root = self._hasher.root(cell.model)
        self._flights: dict[str, Flight] = {}
        """Requests that a worker has, by attempt; likewise `_asking` those that a router has."""
        self._asking: dict[str, Flight] = {}
        self.record = record
        self._holds = holds

    def accept(self, asked: TraceRequest, now_s: float) -> None:
        """A client asks."""
        position = self.record.arrive(now_s, asked.prompt_tokens)
        flight = Flight(position, asked, self._routers.next(), attempt_id=str(position))
        self._place(flight, now_s)

    # --- from engines

    def on_reserved(self, site: Site, reserved: Reserved, now_s: float) -> None:
        flight = self._flights[reserved.request_id]
        assert flight.request is not None
        if not flight.prefill_id:
            self._pulls.on_reserved(site, reserved, flight.pull_id, now_s)
            return
        self._handoffs.on_reserved(site, reserved, flight.request, flight.prefill_id, now_s)

    def on_tokens(self, told: TokenOutput, now_s: float) -> None:
        """A worker has answered."""
        flight = self._flights[told.request_id]
        if told.finish_reason is FinishReason.ERROR:
            self._end(flight, now_s, told.error)
            return
        if not flight.answered:
            own_tokens = told.cached_tokens + self._pulls.take_read_tokens(told.request_id)
            cached_tokens = max(own_tokens, self._handoffs.take_cached_tokens(told.request_id))
            self.record.first_token(flight.position, now_s, min(cached_tokens, flight.asked.prompt_tokens))
        if flight.request is not None:
            flight.request = None
            flight.router.first_token(flight.attempt_id, told.cached_tokens)
        flight.answered = told.output_index + len(told.token_ids)
        if told.finish_reason is not None:
            self._end(flight, now_s)

    def on_death(self, site: Site, output_tokens: Mapping[str, int], now_s: float) -> None:
        """A worker has died; `output_tokens` are those of its answers, by attempt."""
        for flight in [one for one in self._flights.values() if one.site is site]:
            answered = output_tokens.get(flight.attempt_id, flight.answered)
            if answered and not flight.answered:
                self.record.first_token(flight.position, now_s, 0)
            flight.answered = min(answered, flight.asked.output_tokens)
            self._move_on(flight, site.worker_id, now_s)

    # --- one request

    def _place(self, flight: Flight, now_s: float) -> None:
        tokens = self._tokens(flight)
        self._asking[flight.attempt_id] = flight
        flight.tokens = tokens
        flight.router.submit(self._query(flight, tokens), now_s)
        # While it waits they are no more than a burden.
        flight.tokens = None

    def on_decided(self, decided: Outcome, now_s: float) -> None:
        """A router says where a request goes, or that it does not."""
        flight = self._asking.pop(decided.query.request_id)
        if isinstance(decided.answer, Rejected):
            self._come_again(flight, decided.answer, now_s)
        elif isinstance(decided.answer, Placed):
            self._send(flight, decided.answer, now_s)

    def _tokens(self, flight: Flight) -> "array[int]":
        tokens = prompt_token_ids(flight.asked, self._cell.worker.block_size)
        tokens += array("I", [FIRST_ANSWER + flight.position]) * flight.answered
        return tokens

    def _query(self, flight: Flight, tokens: "array[int]") -> Query:
        asked = flight.asked
        return Query(
            flight.attempt_id,
            self._cell.model,
            len(tokens),
            sequence_hashes(self._hasher.extend(self._root, tokens)),
            tuple(flight.excluded),
            tenant=asked.tenant,
            session_id=asked.session_id,
            hints=Hints(priority=asked.priority),
        )

    def _come_again(self, flight: Flight, rejected: Rejected, now_s: float) -> None:
        if flight.excluded:
            flight.excluded.clear()
            wait_s = LAST_RESORT_PAUSE_S
        elif rejected.code is RejectionCode.OVERLOADED:
            self.record.refuse(flight.position)
            wait_s = max(rejected.retry_after_s, _LEAST_RETRY_S)
        elif self._holds and not any(site.is_up for site in self._sites.values()):
            wait_s = HELD_PAUSE_S
        else:
            self._end(flight, now_s, rejected.reason)
            return
        self._clock.at(now_s + wait_s, lambda at_s: self._place(flight, at_s))

    def _send(self, flight: Flight, placed: Placed, now_s: float) -> None:
        decode_id, prefill_id = placed.chosen.decode_id, placed.chosen.prefill_id
        self.record.place(flight.position, decode_id, prefill_id)
        site = self._sites[decode_id]
        flight.site = site
        if not site.is_up:
            self._move_on(flight, decode_id, now_s)
            return
        asked = flight.asked
        flight.prefill_id = prefill_id if self._wants_handoff(flight, placed, now_s) else ""
        flight.pull_id = placed.chosen.pull_id
        is_remote = bool(flight.prefill_id) or self._wants_pull(flight, site)
        flight.request = Request(
            flight.attempt_id,
            flight.tokens or self._tokens(flight),
            asked.prompt_tokens,
            asked.output_tokens,
            self._root,
            Sampling(seed=FIRST_ANSWER + flight.position, ignore_eos=True),
            remote=is_remote,
            tenant=asked.tenant,
            priority=asked.priority,
        )
        self._flights[flight.attempt_id] = flight
        site.requests += 1
        site.submit(flight.request, now_s)

    def _wants_handoff(self, flight: Flight, placed: Placed, now_s: float) -> bool:
        chosen = placed.chosen
        return self._handoffs.wants(chosen.decode_id, chosen.prefill_id, flight.asked.prompt_tokens, now_s)

    def _wants_pull(self, flight: Flight, site: Site) -> bool:
        return bool(flight.pull_id) and self._pulls.wants(site, self._useful(flight), flight.pull_id)

    def _useful(self, flight: Flight) -> Sequence[BlockDigest]:
        """Blocks of the prompt that need not be computed if they are found: all but the one with its last token."""
        tokens = flight.tokens or self._tokens(flight)
        whole = (flight.asked.prompt_tokens - 1) // self._cell.worker.block_size
        return self._hasher.extend(self._root, tokens[: whole * self._cell.worker.block_size])

    def _move_on(self, flight: Flight, worker_id: str, now_s: float) -> None:
        """Its worker has failed: another takes over."""
        self._flights.pop(flight.attempt_id, None)
        flight.router.finish(flight.attempt_id)
        flight.site, flight.request = None, None
        if worker_id not in flight.excluded:
            flight.excluded.append(worker_id)
        if flight.answered >= flight.asked.output_tokens:
            self._end(flight, now_s)
        elif flight.migrations >= self._cell.migration_limit:
            self._end(flight, now_s, f"moved {flight.migrations} times, and its last worker failed too")
        else:
            flight.migrations += 1
            flight.attempt_id = f"{flight.position}-{flight.migrations}"
            self.record.migrate(flight.position)
            self._clock.at(now_s, lambda at_s: self._place(flight, at_s))

    def _end(self, flight: Flight, now_s: float, error: str = "") -> None:
        self._flights.pop(flight.attempt_id, None)
        flight.router.finish(flight.attempt_id)
        self.record.finish(flight.position, now_s, flight.answered, error)
        self._on_end(now_s)
