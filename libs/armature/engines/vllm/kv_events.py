"""From vLLM's KV events to ours. Pure.

vLLM names blocks by hashes of its own. Ours follow from the same tokens and from the root, which travels as the salt of
vLLM's hashes: so the first block of every chain says whose it is, tenants share nothing in vLLM's cache either, and
nothing has to be remembered but which of vLLM's hashes is which digest.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import DIGEST_BYTES, BlockDigest, BlockHasher

logger = logging.getLogger(__name__)

Name: TypeAlias = int | bytes
"""vLLM's hash of a block and all before it."""

_DEVICE = (None, "GPU")
"""Of the blocks that can be used at once, on CPUs too."""


class BlockStored(msgspec.Struct, tag=True, gc=False):
    """Consecutive blocks behind `parent_block_hash` can be found."""

    block_hashes: list[Name]
    parent_block_hash: Name | None
    token_ids: list[int]
    block_size: int
    medium: str | None = None
    extra_keys: list[list[Any] | None] | None = None
    """What is hashed with a block besides its tokens: the salt, with the first block of a chain."""


class BlockRemoved(msgspec.Struct, tag=True, gc=False):
    """Blocks can't be found any more."""

    block_hashes: list[Name]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    """None can be found."""


class EventBatch(msgspec.Struct, array_like=True, gc=False):
    """What one step has changed."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


_decoder = msgspec.msgpack.Decoder(EventBatch)


def decode(payload: bytes) -> EventBatch:
    """A batch as vLLM publishes it.

    Raises:
        msgspec.DecodeError: it is something else.
    """
    return _decoder.decode(payload)


def salt_of(root: BlockDigest) -> str:
    """What vLLM is to hash with a request's first block."""
    return root.hex()


@dataclass(slots=True)
class _Held:
    digest: BlockDigest
    copies: int = 1
    """vLLM tells of each block, and two requests that compute the same make two."""


class EventTranslator:
    """Knows what vLLM's cache holds; numbers our events from 1."""

    def __init__(self, hasher: BlockHasher) -> None:
        self._hasher = hasher
        self._held: dict[Name, _Held] = {}
        self._next_seq = 1

    def __len__(self) -> int:
        """Blocks that can be found."""
        return len(self._held)

    def translate(self, batch: EventBatch) -> list[KvEvent]:
        """What has changed for others."""
        return [event for told in batch.events for event in self._translate(told)]

    def forget(self) -> list[KvEvent]:
        """Events are missing: nothing is known of what the cache holds."""
        self._held.clear()
        return [self._event(KvEventKind.CLEARED)]

    def _translate(self, told: BlockStored | BlockRemoved | AllBlocksCleared) -> Iterator[KvEvent]:
        if isinstance(told, AllBlocksCleared):
            yield from self.forget()
        elif told.medium in _DEVICE:
            stored = isinstance(told, BlockStored)
            digests = self._store(told) if stored else self._remove(told)
            if digests:
                yield self._event(KvEventKind.STORED if stored else KvEventKind.REMOVED, digests)

    def _event(self, kind: KvEventKind, digests: Sequence[BlockDigest] = ()) -> KvEvent:
        event = KvEvent(self._next_seq, kind, tuple(digests))
        self._next_seq += 1
        return event

    def _store(self, told: BlockStored) -> list[BlockDigest]:
        parent = self._parent(told)
        if parent is None or told.block_size != self._hasher.block_size:
            return []
        digests = self._hasher.extend(parent, told.token_ids)
        if len(digests) != len(told.block_hashes):  # of layers that keep only some blocks: no prefix, no use to others
            return []
        new: list[BlockDigest] = []
        for name, digest in zip(told.block_hashes, digests, strict=True):
            held = self._held.get(name)
            if held is not None:
                held.copies += 1
            else:
                self._held[name] = _Held(digest)
                new.append(digest)
        return new

    def _parent(self, told: BlockStored) -> BlockDigest | None:
        """None: blocks before these, or whose they are, are unknown since events were missed."""
        if told.parent_block_hash is not None:
            held = self._held.get(told.parent_block_hash)
            return held.digest if held is not None else None
        for key in (told.extra_keys or [None])[0] or []:
            if isinstance(key, str) and len(key) == 2 * DIGEST_BYTES:
                return BlockDigest(bytes.fromhex(key))
        return None

    def _remove(self, told: BlockRemoved) -> list[BlockDigest]:
        gone: list[BlockDigest] = []
        for name in told.block_hashes:
            held = self._held.get(name)
            if held is None:
                continue
            held.copies -= 1
            if not held.copies:
                del self._held[name]
                gone.append(held.digest)
        return gone
