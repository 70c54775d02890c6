"""What is below host memory, as whoever moves blocks sees it."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import xxhash

from armature.blocks.hashing import DIGEST_BYTES
from armature.offload.copies import Found

CHECKSUM_BYTES = 16


class Problem(Enum):
    """Why a block was not written or read. Nothing here is worth stopping for: the block is computed again."""

    FULL = "full"
    """There is no room on the medium, whatever we thought."""
    AWAY = "away"
    """The store does not answer."""
    FAILED = "failed"
    """The medium has an error."""
    MISSING = "missing"
    """It is not there any more."""
    DAMAGED = "damaged"
    """Something else is there."""


GONE = frozenset({Problem.MISSING, Problem.DAMAGED})
"""There is no use in looking for the block again."""
UNABLE = frozenset({Problem.FULL, Problem.AWAY, Problem.FAILED})
"""The store takes nothing in at the moment."""


class Block(NamedTuple):
    """A block on its way."""

    digest: bytes
    slot: int
    """Its part of the tier that is below."""
    data: memoryview
    """Its bytes, or where they shall be; all of the block."""
    tenant: str = ""
    """Whose quota it counts against; of use to a store that can tell a later process."""


Adopt = Callable[[Sequence[bytes]], Sequence[bytes]]
"""Takes in blocks that were found, oldest first; returns those that there was room for."""


class LowerStore(Protocol):
    """A tier. A slot is written or read by one caller at a time."""

    async def write(self, blocks: Sequence[Block]) -> list[Problem | None]:
        """Store blocks; for each what went wrong."""
        ...

    async def read(self, blocks: Sequence[Block]) -> list[Problem | None]:
        """Fill in the blocks' bytes, which are right where nothing went wrong."""
        ...

    async def forget(self, digests: Sequence[bytes]) -> None:
        """Make sure that no later process finds these."""
        ...

    async def found(self) -> Mapping[int, Found]:
        """What an earlier process has left, by slot, oldest first; to be asked once, before anything else."""
        ...

    def let_go(self, digests: Sequence[bytes]) -> None:
        """The tier counts on these no longer. A store whose slots are not overwritten deletes them, in its own time."""

    async def keep(self, adopt: Adopt) -> None:
        """Look after the medium until that needs nothing more, or until cancelled; blocks found late are adopted."""

    async def close(self) -> None:
        """Give the medium free."""


def checksum(data: memoryview | bytes) -> bytes:
    """Of a block's bytes, against damage (not against forgery)."""
    return xxhash.xxh3_128_digest(data)


def is_block(digest: bytes, data: memoryview | bytes) -> bool:
    """Whether the bytes say of themselves that they are this block."""
    return bytes(data[-DIGEST_BYTES:]) == digest
