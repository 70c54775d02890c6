"""Where a pool of blocks lies in some process's memory, and what can go wrong when it is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from armature.engines.engine import BlockMemory


@dataclass(frozen=True, slots=True)
class Region:
    """A pool of equal blocks: block b is `block_bytes` bytes at `base_address + b * block_bytes`."""

    base_address: int
    block_bytes: int
    num_blocks: int
    memory_kind: str = "DRAM"
    """`DRAM` or `VRAM`."""
    device_id: int = 0

    @classmethod
    def of(cls, memory: BlockMemory) -> "Region":
        return cls(
            base_address=memory.base_address,
            block_bytes=memory.block_bytes,
            num_blocks=memory.num_blocks,
            memory_kind=memory.memory_kind,
            device_id=memory.device_id,
        )

    @property
    def size_bytes(self) -> int:
        return self.block_bytes * self.num_blocks

    def holds(self, block_ids: Sequence[int]) -> bool:
        return not block_ids or (min(block_ids) >= 0 and max(block_ids) < self.num_blocks)


class ReadError(Exception):
    """Blocks could not be read. Nothing more will be written to them on behalf of this read.

    `reason` is one word for counting: `disconnected`, `invalid`, `unavailable`, `transport`.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
