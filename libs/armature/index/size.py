"""What an index holds and about what it weighs."""

from dataclasses import dataclass

# What entries weigh on average, in bytes, with CPython 3.11 on 64 bits; `tests/bench/index.py` compares. A block has a
# hash and a place in a dict; a holding has a place in a log; a link has places in three dicts.
_BLOCK_BYTES = 75
_HOLDING_BYTES = 9
_LINK_BYTES = 160


@dataclass(frozen=True, slots=True)
class IndexSize:
    workers: int
    stale_workers: int
    blocks: int
    """Distinct blocks, counted once a tier."""
    holdings: int
    """Pairs of block and worker."""
    linked_blocks: int
    """Blocks that a match has come through since they were stored."""
    size_bytes: int
    """Estimated from the counts."""
    evicted_holdings: int
    """Forgotten since the start to stay within the limit."""


def estimated_bytes(blocks: int, holdings: int, linked_blocks: int, num_slots: int) -> int:
    """What an index of these counts weighs, as the interpreter allocates it.

    A block with one holder shares its mask with others. One that has more has a mask of its own, of a bit a slot.
    """
    shared = min(blocks, holdings - blocks)
    mask_bytes = 28 + 4 * (num_slots // 30)
    return blocks * _BLOCK_BYTES + holdings * _HOLDING_BYTES + linked_blocks * _LINK_BYTES + shared * mask_bytes
