"""Sequence hashes as they travel: little-endian 64-bit integers, eight bytes each, in one `bytes`."""

import struct
from collections.abc import Collection

HASH_BYTES = 8


def pack_hashes(hashes: Collection[int]) -> bytes:
    return struct.pack(f"<{len(hashes)}Q", *hashes)


def unpack_hashes(packed: bytes) -> tuple[int, ...]:
    """The hashes in `packed`.

    Raises:
        ValueError: the length is no multiple of eight.
    """
    num_hashes, rest = divmod(len(packed), HASH_BYTES)
    if rest:
        raise ValueError(f"{len(packed)} bytes are no list of 8-byte hashes")
    return struct.unpack(f"<{num_hashes}Q", packed)
