"""What has been placed and has not ended, and what each worker therefore has to do.

A worker's report is the truth about a moment that has passed; the ledger adds what was placed since.
"""

from collections.abc import Sequence
from typing import NamedTuple

from armature.routing import columns as at
from armature.routing.account import Account, Key, Share
from armature.routing.active import ActiveBlocks
from armature.routing.unstarted import Unstarted


class Entry(NamedTuple):
    """What a placed request takes."""

    worker_id: str
    """That decodes."""
    share: Share
    prefill_id: str = ""
    prefill_share: Share | None = None
    hashes: Sequence[int] = ()
    uncached_tokens: int = 0
    """Prompt tokens to be computed, wherever that is."""
    has_tail: bool = False
    predicted_tokens: int = 0
    """Prompt tokens that the index says the decoding worker holds, whatever is thought of the index."""
    tenant: str = ""
    store_id: str = ""
    """Another node's kv-offload that it reads from."""
    store_tokens: int = 0
    """Prompt tokens that this one says it keeps."""

    @property
    def computed_by(self) -> str:
        """The worker that computes the prompt."""
        return self.prefill_id or self.worker_id

    @property
    def compute_s(self) -> float:
        """Computing the prompt there."""
        return (self.prefill_share or self.share).prefill_s


class _Open:
    __slots__ = ("decode", "entry", "is_decoding", "prefill")

    def __init__(self, entry: Entry, decode: Account, prefill: Account | None) -> None:
        self.entry = entry
        self.decode = decode
        self.prefill = prefill
        self.is_decoding = False

    @property
    def computes(self) -> Account:
        return self.prefill or self.decode


class Ledger:
    """All requests in flight.

    An entry ends with its request, with its owner, or `max_age_s` after its placement, if its owner lives and never
    tells. With `active`, distinct blocks in flight are counted too.
    """

    def __init__(self, max_age_s: float = 3600.0, active: ActiveBlocks | None = None) -> None:
        self._max_age_s = max_age_s
        self._active = active
        self._entries: dict[Key, _Open] = {}
        self._turn = 0
        self.unstarted = Unstarted()

    def __len__(self) -> int:
        return len(self._entries)

    def open(self, key: Key, entry: Entry, decode: Account, prefill: Account | None = None) -> None:
        """Enter a placement; an earlier one of the same request ends."""
        self.finish(key)
        self._expire(entry.share.placed_s)
        opened = self._entries[key] = _Open(entry, decode, prefill)
        decode.open(key, entry.share)
        decode.column[at.TURN] = self._turn
        if self._active is not None:
            active = self._active.open(entry.worker_id, entry.hashes, has_tail=entry.has_tail)
            decode.column[at.ACTIVE_BLOCKS] = active
        if prefill is not None and entry.prefill_share is not None:
            prefill.open(key, entry.prefill_share)
            prefill.column[at.TURN] = self._turn
        opened.computes.column[at.PREFILL_TOKENS] += entry.uncached_tokens
        self._turn += 1
        self.unstarted.add(entry.tenant, entry.computed_by, entry.compute_s)

    def first_token(self, key: Key) -> Entry | None:
        """A request's prompt is computed: it decodes, and its prefill worker is done. None: unknown, or known."""
        opened = self._entries.get(key)
        if opened is None or opened.is_decoding:
            return None
        opened.computes.column[at.PREFILL_TOKENS] -= opened.entry.uncached_tokens
        opened.is_decoding = True
        self._started(opened.entry)
        opened.decode.first_token(key)
        if opened.prefill is not None:
            opened.prefill.close(key, was_decoding=False, has_computed=True)
            opened.prefill = None
        return opened.entry

    def finish(self, key: Key) -> None:
        """A request has ended. Unknown ones are ignored."""
        opened = self._entries.pop(key, None)
        if opened is None:
            return
        if not opened.is_decoding:
            opened.computes.column[at.PREFILL_TOKENS] -= opened.entry.uncached_tokens
            self._started(opened.entry)
        decode, entry = opened.decode, opened.entry
        decode.close(key, was_decoding=opened.is_decoding, has_computed=opened.is_decoding)
        if self._active is not None and not decode.is_gone:
            active = self._active.close(entry.worker_id, entry.hashes, has_tail=entry.has_tail)
            decode.column[at.ACTIVE_BLOCKS] = active
        if opened.prefill is not None:
            opened.prefill.close(key, was_decoding=False, has_computed=False)

    def forget(self, owner: str) -> list[str]:
        """End all requests of an owner; which they were."""
        keys = [key for key in self._entries if key[0] == owner]
        for key in keys:
            self.finish(key)
        return [request_id for _, request_id in keys]

    def _started(self, entry: Entry) -> None:
        self.unstarted.remove(entry.tenant, entry.computed_by, entry.compute_s)

    def _expire(self, now_s: float) -> None:
        while self._entries:
            key, opened = next(iter(self._entries.items()))
            if opened.entry.share.placed_s > now_s - self._max_age_s:
                break
            self.finish(key)
