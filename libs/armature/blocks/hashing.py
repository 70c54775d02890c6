"""Block identity: a keyed 128-bit digest chained along the prompt.

The digest of a block is BLAKE2b-128 (RFC 7693), keyed with the cluster's secret, over the parent's digest and the
block's token ids. The first parent is the root: a digest of everything besides the tokens that shapes the KV. So equal
digests mean equal KV, nobody without the secret can forge one, and namespaces never meet.

The low 64 bits are the **sequence hash** that the index and the wire carry. A false match of sequence hashes may cost
time, never correctness: whoever reuses bytes compares whole digests.
"""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import NewType

BlockDigest = NewType("BlockDigest", bytes)

DIGEST_BYTES = 16


class BlockHasher:
    """Computes block digests for one cluster.

    Raises:
        ValueError: the secret is longer than the 64 bytes that BLAKE2b takes as a key, or `block_size` is below 1.
    """

    def __init__(self, secret: bytes, block_size: int) -> None:
        if len(secret) > 64:
            raise ValueError(f"the cluster secret has {len(secret)} bytes; BLAKE2b takes at most 64")
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; it must be at least 1")
        self.block_size = block_size
        self._keyed = blake2b(digest_size=DIGEST_BYTES, key=secret)

    def root(self, model: str, namespace: str = "", adapter: str = "", media: Sequence[bytes] = ()) -> BlockDigest:
        """The parent of every first block: everything besides tokens that shapes the KV."""
        hasher = self._keyed.copy()
        for part in (model.encode(), namespace.encode(), adapter.encode(), *media):
            hasher.update(len(part).to_bytes(4, "little"))
            hasher.update(part)
        return BlockDigest(hasher.digest())

    def extend(self, parent: BlockDigest, token_ids: Sequence[int]) -> list[BlockDigest]:
        """Digests of the whole blocks in `token_ids`, the first one chained to `parent`; a partial tail is left out."""
        width = 4 * self.block_size
        packed = memoryview(array("I", token_ids).tobytes())
        keyed = self._keyed
        digests: list[BlockDigest] = []
        for start in range(0, len(packed) - width + 1, width):
            hasher = keyed.copy()
            hasher.update(parent)
            hasher.update(packed[start : start + width])
            parent = BlockDigest(hasher.digest())
            digests.append(parent)
        return digests


def pack_hashes(digests: Iterable[BlockDigest]) -> bytes:
    """Sequence hashes of `digests` as they travel: little-endian, 8 bytes each."""
    return b"".join([digest[:8] for digest in digests])
