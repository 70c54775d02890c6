"""What has been placed and has not ended, and what each worker therefore has to do.

A worker's report is the truth about a moment that has passed; the ledger adds what was placed since. The queue is a
clock that runs ahead: `busy_until_s` is when a worker will have computed all prompts given to it. A report sets it, a
placement moves it, time catches up with it.
"""

import math

from armature.routing.worker import UNMEASURED, Load, Speeds, Worker

Key = tuple[str, str]
"""Owner and request id."""


class Share:
    """What one request asks of one worker."""

    __slots__ = ("blocks", "placed_s", "prefill_s")

    def __init__(self, placed_s: float, prefill_s: float, blocks: int) -> None:
        self.placed_s = placed_s
        self.prefill_s = prefill_s
        self.blocks = blocks
        """Blocks that it needs besides those it finds there."""


class Account:
    """One worker's load as far as it is known.

    What placement reads for every worker and every request are plain attributes, kept up to date by `_sum_up`.
    """

    def __init__(self, worker: Worker, assumed: Speeds) -> None:
        self.requests = 0
        """Requests of this router that have not ended on this worker."""
        self.last_placed_s = -math.inf
        self.busy_until_s = 0.0
        self.running_seqs = 0
        """Streams that a prompt computed here would stall."""
        self.waiting_seqs = 0
        self.free_blocks = worker.num_blocks
        """Blocks left when everybody known has what he asks for; negative when they wait for room."""
        self.measured = UNMEASURED
        self._load = Load(free_blocks=worker.num_blocks)
        self._decoding = 0
        self._waiting_blocks = 0
        self._recent: dict[Key, Share] = {}
        """Requests that no report shows yet and that have no token yet, oldest first."""
        self._recent_blocks = 0
        self.describe(worker)
        self.assume(assumed)

    def describe(self, worker: Worker) -> None:
        """Take over what the worker is."""
        self.worker = worker
        self.worker_id = worker.worker_id
        self.block_size = worker.block_size
        self.max_num_seqs = worker.max_num_seqs
        self.num_blocks = worker.num_blocks

    def assume(self, assumed: Speeds) -> None:
        """Use these speeds where the worker has measured none itself."""
        measured = self.measured
        self.token_s = 1 / (measured.prefill_tokens_per_s or assumed.prefill_tokens_per_s)
        """Computing one prompt token."""
        self.decode_step_s = measured.decode_step_s or assumed.decode_step_s
        self.transfer_bytes_per_s = measured.transfer_bytes_per_s or assumed.transfer_bytes_per_s

    def report(self, load: Load, now_s: float, settle_s: float) -> None:
        """Take over what the worker says; only what was placed just now is still to be added to it."""
        self._load = load
        if load.speeds != self.measured:
            self.measured = Speeds(*(new or old for new, old in zip(load.speeds, self.measured, strict=True)))
            self.assume(Speeds(1 / self.token_s, self.decode_step_s, self.transfer_bytes_per_s))
        self._recent = {key: share for key, share in self._recent.items() if share.placed_s > now_s - settle_s}
        self._recent_blocks = sum([share.blocks for share in self._recent.values()])
        self._waiting_blocks = load.waiting_prefill_tokens // self.block_size
        unseen_s = sum([share.prefill_s for share in self._recent.values()])
        self.busy_until_s = now_s + load.waiting_prefill_tokens * self.token_s + unseen_s
        self._sum_up()

    def open(self, key: Key, share: Share) -> None:
        """A request is placed here."""
        self.requests += 1
        self._recent[key] = share
        self._recent_blocks += share.blocks
        self.busy_until_s = max(self.busy_until_s, share.placed_s) + share.prefill_s
        self.last_placed_s = share.placed_s
        self._sum_up()

    def first_token(self, key: Key) -> None:
        """A request placed here decodes here now."""
        self._decoding += 1
        self._settle(key)
        self._sum_up()

    def close(self, key: Key, *, was_decoding: bool, has_computed: bool) -> None:
        """A request has ended here; if its prompt was never computed, the queue is shorter by it."""
        self.requests -= 1
        self._decoding -= was_decoding
        share = self._settle(key)
        if share is not None and not has_computed:
            self.busy_until_s -= share.prefill_s
        self._sum_up()

    def _settle(self, key: Key) -> Share | None:
        share = self._recent.pop(key, None)
        if share is not None:
            self._recent_blocks -= share.blocks
        return share

    def _sum_up(self) -> None:
        load = self._load
        self.running_seqs = max(load.running_seqs, self._decoding)
        self.waiting_seqs = load.waiting_seqs + len(self._recent)
        self.free_blocks = load.free_blocks - self._waiting_blocks - self._recent_blocks


class _Entry:
    __slots__ = ("decode", "is_decoding", "placed_s", "prefill")

    def __init__(self, decode: Account, prefill: Account | None, placed_s: float) -> None:
        self.decode = decode
        self.prefill = prefill
        self.placed_s = placed_s
        self.is_decoding = False


class Ledger:
    """All requests in flight.

    An entry ends with its request, with its owner, or `max_age_s` after its placement, if its owner lives and never
    tells.
    """

    def __init__(self, max_age_s: float = 3600.0) -> None:
        self._max_age_s = max_age_s
        self._entries: dict[Key, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, key: Key, decode: tuple[Account, Share], prefill: tuple[Account, Share] | None) -> None:
        """Enter a placement; an earlier one of the same request ends."""
        self.finish(key)
        placed_s = decode[1].placed_s
        self._expire(placed_s)
        self._entries[key] = _Entry(decode[0], prefill[0] if prefill else None, placed_s)
        for account, share in (decode, prefill) if prefill else (decode,):
            account.open(key, share)

    def first_token(self, key: Key) -> None:
        """A request's prompt is computed: it decodes, and its prefill worker is done. Unknown ones are ignored."""
        entry = self._entries.get(key)
        if entry is None or entry.is_decoding:
            return
        entry.is_decoding = True
        entry.decode.first_token(key)
        if entry.prefill is not None:
            entry.prefill.close(key, was_decoding=False, has_computed=True)
            entry.prefill = None

    def finish(self, key: Key) -> None:
        """A request has ended. Unknown ones are ignored."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        entry.decode.close(key, was_decoding=entry.is_decoding, has_computed=entry.is_decoding)
        if entry.prefill is not None:
            entry.prefill.close(key, was_decoding=False, has_computed=False)

    def forget(self, owner: str) -> int:
        """End all requests of an owner; how many there were."""
        keys = [key for key in self._entries if key[0] == owner]
        for key in keys:
            self.finish(key)
        return len(keys)

    def _expire(self, now_s: float) -> None:
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if entry.placed_s > now_s - self._max_age_s:
                break
            self.finish(key)
