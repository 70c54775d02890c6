"""Block memory in host RAM."""

from collections.abc import Sequence

import numpy as np

from armature.blocks.hashing import DIGEST_BYTES, BlockDigest


class HostBlockMemory:
    """Block memory in host RAM; see `BlockMemory`."""

    memory_kind = "DRAM"
    device_id = 0

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        if block_bytes < DIGEST_BYTES:
            raise ValueError(f"block_bytes is {block_bytes}; the digest alone takes {DIGEST_BYTES}")
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        flat = np.zeros(num_blocks * block_bytes, dtype=np.uint8)  # numpy asks for huge pages: transports read faster
        self._flat = flat.data
        self._bytes = flat.reshape(num_blocks, block_bytes)
        self._digests = self._bytes[:, -DIGEST_BYTES:].view(f"V{DIGEST_BYTES}")[:, 0]

    @property
    def base_address(self) -> int:
        return self._bytes.ctypes.data

    def read(self, block_ids: Sequence[int]) -> bytes:
        return self._bytes[list(block_ids)].tobytes()

    def write(self, block_ids: Sequence[int], data: bytes) -> None:
        self._bytes[list(block_ids)] = np.frombuffer(data, dtype=np.uint8).reshape(-1, self.block_bytes)

    def digests(self, block_ids: Sequence[int]) -> list[BlockDigest]:
        return self._digests[list(block_ids)].tolist()

    def view(self, block_id: int) -> memoryview:
        """The block's own bytes."""
        start = block_id * self.block_bytes
        return self._flat[start : start + self.block_bytes]

    def set_digest(self, block_id: int, digest: bytes) -> None:
        end = (block_id + 1) * self.block_bytes
        self._flat[end - DIGEST_BYTES : end] = digest
