"""How an agent's NIXL metadata travels: sealed, so that NIXL never sees a damaged copy.

NIXL loses a peer for good when it is given truncated metadata of an agent that it knows. The seal carries the agent's
name and a checksum of everything; it guards against damage, not against forgery (the channel does that).
"""

from hashlib import blake2b

_MAGIC = b"AXM1"
_CHECKSUM_BYTES = 16
_HEADER_BYTES = len(_MAGIC) + _CHECKSUM_BYTES + 2


def seal(name: str, metadata: bytes) -> bytes:
    """`metadata` of agent `name`, ready for a message."""
    encoded = name.encode()
    body = len(encoded).to_bytes(2, "little") + encoded + metadata
    return _MAGIC + _checksum(body) + body


def unseal(sealed: bytes) -> tuple[str, bytes]:
    """The agent's name and its metadata.

    Raises:
        ValueError: these are not, or not all of, the bytes that `seal` made.
    """
    start = len(_MAGIC) + _CHECKSUM_BYTES
    if len(sealed) < _HEADER_BYTES or not sealed.startswith(_MAGIC):
        raise ValueError(f"{len(sealed)} bytes are no NIXL metadata")
    body = sealed[start:]
    if _checksum(body) != sealed[len(_MAGIC) : start]:
        raise ValueError(f"{len(sealed)} bytes of NIXL metadata are damaged")
    name_end = 2 + int.from_bytes(body[:2], "little")
    return body[2:name_end].decode(), body[name_end:]


def _checksum(body: bytes) -> bytes:
    return blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
