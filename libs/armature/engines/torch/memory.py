"""The paged KV pool: one allocation, whose blocks each hold all layers' keys and values and end with a digest.

A block is laid out `[layer][key | value][token][kv_head][head_dim]`, then padding, then the 16 bytes of its digest. Its
size is a whole number of token rows (`kv_heads * head_dim` elements), so that the pool is also one matrix of rows: a
token's key is written with one index operation, and a layer of a block is one strided row to gather.

Only the engine's thread computes into blocks, zeroes and sets digests; `read`, `write` and `digests` are for a
transport's thread, which owns the blocks it touches by reservation.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from armature.blocks.hashing import DIGEST_BYTES, BlockDigest

PAGE_BYTES = mmap.PAGESIZE


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """What one block holds. Equal layouts exchange bytes."""

    num_layers: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @property
    def row_elements(self) -> int:
        """Elements of one token's keys (or values) in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def row_bytes(self) -> int:
        return self.row_elements * self.dtype.itemsize

    @property
    def kv_rows(self) -> int:
        return self.num_layers * 2 * self.block_size

    @property
    def rows_per_block(self) -> int:
        """Rows of keys and values and, after them, as many as the digest needs."""
        return self.kv_rows + -(-DIGEST_BYTES // self.row_bytes)

    @property
    def block_bytes(self) -> int:
        return self.rows_per_block * self.row_bytes

    def key_row(self, layer: int) -> int:
        """First row of a layer's keys within a block; its values follow `block_size` rows later."""
        return layer * 2 * self.block_size


class PagedMemory:
    """A pool of blocks in host or device memory; implements `BlockMemory`.

    Attributes:
        rows: the pool as a matrix `[num_blocks * rows_per_block, row_elements]`.
        keys, values: for each layer, a strided view `[num_blocks, block_size * row_elements]`.
    """

    def __init__(self, layout: BlockLayout, num_blocks: int, device: torch.device) -> None:
        if num_blocks < 1:
            raise ValueError(f"num_blocks is {num_blocks}; it must be at least 1")
        self.layout = layout
        self._num_blocks = num_blocks
        self._device = device
        size_bytes = layout.block_bytes * num_blocks
        self._bytes = _allocate(size_bytes, device).view(num_blocks, layout.block_bytes)
        self._digests = self._bytes[:, -DIGEST_BYTES:]
        self._host: NDArray[np.uint8] | None = self._bytes.numpy() if device.type == "cpu" else None
        self.rows = self._bytes.view(layout.dtype).view(-1, layout.row_elements)
        self.keys = [self._layer_view(layout.key_row(layer)) for layer in range(layout.num_layers)]
        self.values = [
            self._layer_view(layout.key_row(layer) + layout.block_size) for layer in range(layout.num_layers)
        ]

    def _layer_view(self, first_row: int) -> torch.Tensor:
        layout = self.layout
        width = layout.block_size * layout.row_elements
        stride = layout.rows_per_block * layout.row_elements
        return self.rows.as_strided((self._num_blocks, width), (stride, 1), first_row * layout.row_elements)

    @property
    def base_address(self) -> int:
        return self._bytes.data_ptr()

    @property
    def block_bytes(self) -> int:
        return self.layout.block_bytes

    @property
    def num_blocks(self) -> int:
        return self._num_blocks

    @property
    def memory_kind(self) -> str:
        return "VRAM" if self._device.type == "cuda" else "DRAM"

    @property
    def device_id(self) -> int:
        return self._device.index or 0

    def read(self, block_ids: Sequence[int]) -> bytes:
        self._check(block_ids)
        if self._host is None:
            return self._bytes[self._index(block_ids)].cpu().numpy().tobytes()
        return b"".join([self._host[block_id].data for block_id in block_ids])

    def write(self, block_ids: Sequence[int], data: bytes) -> None:
        self._check(block_ids)
        if len(data) != len(block_ids) * self.block_bytes:
            raise ValueError(f"{len(data)} bytes do not fill {len(block_ids)} blocks of {self.block_bytes} bytes")
        self._store(self._bytes, self._host, block_ids, data)

    def digests(self, block_ids: Sequence[int]) -> list[BlockDigest]:
        self._check(block_ids)
        if self._host is None:
            packed = self._digests[self._index(block_ids)].cpu().numpy().tobytes()
        else:
            packed = b"".join([self._host[block_id, -DIGEST_BYTES:].data for block_id in block_ids])
        return [BlockDigest(packed[at : at + DIGEST_BYTES]) for at in range(0, len(packed), DIGEST_BYTES)]

    def open(self, block_ids: Sequence[int]) -> None:
        """Empty blocks that new content is about to be written to; done when this returns.

        The digest goes first, for a reader that is in the block just now. Then the rest: attention masks what lies
        behind a sequence's end, but a NaN left there by another request would come through any mask.
        """
        if not block_ids:
            return
        if self._host is None:
            index = self._index(block_ids)
            self._digests[index] = 0
            self._bytes[index] = 0
            self.synchronize()
            return
        for block_id in block_ids:
            self._host[block_id, -DIGEST_BYTES:] = 0
            self._host[block_id] = 0

    def seal(self, sealed: Sequence[tuple[int, BlockDigest]]) -> None:
        """Set the digests of complete blocks. All that was computed before is in memory before a digest is."""
        if not sealed:
            return
        self.synchronize()
        host = None if self._host is None else self._host[:, -DIGEST_BYTES:]
        self._store(self._digests, host, [block_id for block_id, _ in sealed], b"".join([one for _, one in sealed]))

    def _store(
        self, target: torch.Tensor, host: NDArray[np.uint8] | None, block_ids: Sequence[int], data: bytes
    ) -> None:
        """Write `data`, cut evenly, to the rows `block_ids` of `target`; `host` is its host view.

        On the host by plain copies: a transport's thread must not start a second pool of compute threads.
        """
        if not block_ids:
            return
        source = np.frombuffer(data, dtype=np.uint8).reshape(len(block_ids), -1)
        if host is None:
            target[self._index(block_ids)] = torch.from_numpy(source.copy()).to(self._device)
            self.synchronize()
            return
        for block_id, row in zip(block_ids, source, strict=True):
            host[block_id] = row

    def synchronize(self) -> None:
        """Wait until the device has done what it was given. Host memory needs no waiting."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _index(self, block_ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(block_ids, dtype=torch.long, device=self._device)

    def _check(self, block_ids: Sequence[int]) -> None:
        # Negative ids would silently count from the end of the pool.
        if block_ids and (min(block_ids) < 0 or max(block_ids) >= self._num_blocks):
            raise ValueError(f"block ids must be from 0 to {self._num_blocks - 1}, got {list(block_ids)[:8]}")


def blocks_in(budget_bytes: int, layout: BlockLayout) -> int:
    """Blocks that fit a byte budget, at least one."""
    return max(1, budget_bytes // layout.block_bytes)


def _allocate(size_bytes: int, device: torch.device) -> torch.Tensor:
    """Zeroed bytes; on the host page-aligned, and given page by page as they are first touched."""
    if device.type != "cpu":
        return torch.zeros(size_bytes, dtype=torch.uint8, device=device)
    pages = mmap.mmap(-1, -(-size_bytes // PAGE_BYTES) * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8, count=size_bytes)
