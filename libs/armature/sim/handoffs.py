"""Prompts computed on prefill workers for decode workers: the live protocol in simulated time.

The decode worker reserves room, then asks for the prompt; finished blocks are announced and read one batch after
another while the rest is computed; what is here when it ends is used and the remainder computed on the decode worker.
Nothing that goes wrong costs more than time: a prefill worker that dies is avoided for a while.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from armature.scheduling.request import KvEvent, Request, Reserved, Sampling, Staged, TokenOutput, Work
from armature.sim.cell import CellShape
from armature.sim.clock import Clock
from armature.sim.links import Links, Transfer
from armature.sim.site import Site

MAX_READ_BYTES = 32 * 1024 * 1024
"""Of one read, as in live workers."""
AVOID_S = 5.0
"""After a sign of death nobody waits for that prefill worker again for so long, as in live workers."""

Changed = Callable[[Site, Sequence[KvEvent]], None]


@dataclass(slots=True, eq=False)
class _Handoff:
    """One prompt on its way."""

    staging_id: str
    request: Request
    """The decode worker's."""
    reserved: Reserved
    decode: Site
    prefill: Site
    staged: int = 0
    """Blocks that could be read, counted from the first reserved one; likewise those that have landed."""
    landed: int = 0
    reading: Transfer | None = None
    cached_tokens: int = 0
    """Found in the prefill worker's cache."""


@dataclass(slots=True)
class _Reader:
    """What a decode worker reads."""

    live: dict[str, _Handoff] = field(default_factory=dict[str, _Handoff])
    """By request."""
    waiting: deque[_Handoff] = field(default_factory=deque[_Handoff])
    avoided: dict[str, float] = field(default_factory=dict[str, float])
    """Until when, by prefill worker."""
    bytes_per_s: float = 0.0
    """Of recent reads, averaged as live workers do."""


class Handoffs:
    """All of a cell. `changed` is told what landing blocks change in a decode worker's cache."""

    def __init__(
        self, cell: CellShape, clock: Clock, links: Links, sites: Mapping[str, Site], changed: Changed
    ) -> None:
        self._cell = cell
        self._clock = clock
        self._links = links
        self._sites = sites
        self._changed = changed
        self._readers: dict[str, _Reader] = {worker_id: _Reader() for worker_id in sites}
        self._staged: dict[str, _Handoff] = {}
        """Prompts that a prefill worker has, by staging."""
        self._cached: dict[str, int] = {}
        self._begun = 0
        self.failures = 0

    def wants(self, decode_id: str, prefill_id: str, prompt_tokens: int, now_s: float) -> bool:
        """Whether the decode worker will ask the other one to compute a prompt."""
        if not prefill_id or prompt_tokens <= self._cell.worker.block_size:
            return False
        return self._readers[decode_id].avoided.get(prefill_id, 0.0) <= now_s

    def bytes_per_s(self, decode_id: str) -> float:
        """As measured by the decode worker; 0: nothing has been read yet."""
        return self._readers[decode_id].bytes_per_s

    def take_cached_tokens(self, request_id: str) -> int:
        """What the prefill worker has found of a prompt in its cache; asked once, with the first token."""
        return self._cached.pop(request_id, 0)

    # --- from engines

    def on_reserved(self, decode: Site, reserved: Reserved, request: Request, prefill_id: str, now_s: float) -> None:
        """There is room for a prompt's blocks: fetch them."""
        if not reserved.block_ids:
            return
        reader = self._readers[decode.worker_id]
        self._begun += 1
        handoff = _Handoff(f"p-{self._begun}", request, reserved, decode, self._sites[prefill_id])
        reader.live[reserved.request_id] = handoff
        if len(reader.live) - len(reader.waiting) > self._cell.max_fetches:
            reader.waiting.append(handoff)
        else:
            self._ask(handoff, now_s)

    def on_staged(self, staged: Staged, now_s: float) -> None:
        """A prefill worker has computed blocks."""
        handoff = self._staged.get(staged.request_id)
        if handoff is None:
            return
        handoff.cached_tokens = max(handoff.cached_tokens, staged.cached_tokens)
        upto = staged.first_block + len(staged.block_ids) - handoff.reserved.first_block
        handoff.staged = min(max(handoff.staged, upto), len(handoff.reserved.block_ids))
        self._read(handoff, now_s)

    def on_refused(self, told: TokenOutput, now_s: float) -> bool:
        """A prefill worker gives a prompt up; whether the answer was for one."""
        handoff = self._staged.pop(told.request_id, None)
        if handoff is not None:
            self._end(handoff, now_s)
        return handoff is not None

    def on_death(self, site: Site, now_s: float) -> None:
        """A worker has died: nobody reads from it any more, and it reads no more."""
        for handoff in [one for one in self._staged.values() if one.prefill is site]:
            del self._staged[handoff.staging_id]
            self._avoid(handoff, now_s)
            self._end(handoff, now_s)
        gone = self._readers[site.worker_id]
        self._readers[site.worker_id] = _Reader()
        for handoff in gone.live.values():
            self._cancel_read(handoff, now_s)
            if self._staged.pop(handoff.staging_id, None) is not None:
                self._leave(handoff, now_s)

    # --- one prompt

    def _ask(self, handoff: _Handoff, now_s: float) -> None:
        prefill, request = handoff.prefill, handoff.request
        if not prefill.is_up:
            self._avoid(handoff, now_s)
            self._end(handoff, now_s)
            return
        self._staged[handoff.staging_id] = handoff
        asked = Request(
            handoff.staging_id,
            request.token_ids[: request.prompt_tokens],
            request.prompt_tokens,
            0,
            request.root,
            Sampling(seed=request.sampling.seed),
            Work.PREFILL,
            first_block=handoff.reserved.first_block,
            tenant=request.tenant,
            priority=request.priority,
        )
        prefill.submit(asked, now_s)

    def _read(self, handoff: _Handoff, now_s: float) -> None:
        """Read the next of what can be read, or end if all is here."""
        if handoff.reading is not None:
            return
        wanted = len(handoff.reserved.block_ids)
        if handoff.landed >= wanted:
            self._cached[handoff.request.request_id] = handoff.cached_tokens
            self._release(handoff)
            self._end(handoff, now_s)
            return
        at_once = max(1, MAX_READ_BYTES // self._cell.block_bytes)
        count = min(handoff.staged - handoff.landed, at_once)
        if count <= 0:
            return

        def done(at_s: float) -> None:
            self._land(handoff, count, at_s)

        size_bytes = count * self._cell.block_bytes
        handoff.reading = self._links.start(
            handoff.prefill.worker_id, handoff.decode.worker_id, size_bytes, done, now_s
        )  # fmt: skip

    def _land(self, handoff: _Handoff, count: int, now_s: float) -> None:
        transfer, handoff.reading = handoff.reading, None
        assert transfer is not None
        self._measure(handoff, count * self._cell.block_bytes / max(now_s - transfer.started_s, 1e-9))
        handoff.landed += count
        events = handoff.decode.engine.land(handoff.request.request_id, handoff.landed)
        if events:
            self._changed(handoff.decode, events)
        self._read(handoff, now_s)

    def _measure(self, handoff: _Handoff, bytes_per_s: float) -> None:
        reader = self._readers[handoff.decode.worker_id]
        known = reader.bytes_per_s
        reader.bytes_per_s = 0.8 * known + 0.2 * bytes_per_s if known else bytes_per_s

    # --- ends

    def _end(self, handoff: _Handoff, now_s: float) -> None:
        """Let the decode worker go on with what is here, and read the next prompt."""
        self._cancel_read(handoff, now_s)
        if handoff.landed < len(handoff.reserved.block_ids):
            self.failures += 1
        request_id = handoff.request.request_id
        reader = self._readers[handoff.decode.worker_id]
        del reader.live[request_id]
        handoff.decode.engine.finish_remote(request_id, handoff.landed)
        handoff.decode.poke()
        if reader.waiting:
            self._ask(reader.waiting.popleft(), now_s)

    def _cancel_read(self, handoff: _Handoff, now_s: float) -> None:
        if handoff.reading is not None:
            self._links.cancel(handoff.reading, now_s)
            handoff.reading = None

    def _release(self, handoff: _Handoff) -> None:
        del self._staged[handoff.staging_id]
        handoff.prefill.engine.release(handoff.staging_id)
        handoff.prefill.poke()

    def _leave(self, handoff: _Handoff, now_s: float) -> None:
        """Its reader has died: compute no further; staged blocks are kept until the lease runs out."""
        prefill, epoch = handoff.prefill, handoff.prefill.epoch
        prefill.engine.stop_prefill(handoff.staging_id)
        prefill.poke()

        def release(_: float) -> None:
            if prefill.epoch == epoch:
                prefill.engine.release(handoff.staging_id)
                prefill.poke()

        self._clock.at(now_s + self._cell.lease_s, release)

    def _avoid(self, handoff: _Handoff, now_s: float) -> None:
        self._readers[handoff.decode.worker_id].avoided[handoff.prefill.worker_id] = now_s + AVOID_S
