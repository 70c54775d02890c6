"""What is kept of a response: enough to show it again, and to go on from it.

A response keeps its own turn only and names those before it, so that a conversation takes no more memory than was said.
"""

from typing import Any, NamedTuple

import msgspec

MAX_TURNS = 4096
"""In a conversation; its names are read with every turn."""
MAX_CONVERSATION_BYTES = 32 * 1024 * 1024
"""All turns are read at once. Far more than the longest context: items may hold more than is read of them."""


class Conversation(NamedTuple):
    """What has been said so far."""

    ids: list[str]
    """Of its responses, the oldest first."""
    items: list[dict[str, Any]]
    size_bytes: int


class Record(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    response: bytes
    """The response object as the client got it, JSON."""
    input: bytes
    """The items of its input, a JSON list; each has an id."""
    ancestors: tuple[str, ...] = ()
    """Ids of the responses that it goes on from, the oldest first."""
    is_open: bool = False
    """It is still being made, in the background."""
    bytes_before: int = 0
    """Of all turns before it, as they are stored."""

    @property
    def conversation_bytes(self) -> int:
        """Of this turn and all before it."""
        return self.bytes_before + len(self.response) + len(self.input)

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    def input_items(self) -> list[dict[str, Any]]:
        return _ITEMS.decode(self.input)

    def items(self) -> list[dict[str, Any]]:
        """What was said in this turn, input and output."""
        return [*self.input_items(), *_OUTPUT.decode(self.response).output]

    @property
    def is_cancelled(self) -> bool:
        """Somebody has ended it before it was complete."""
        return _STATUS.decode(self.response).status == "cancelled"

    def failed(self, message: str) -> "Record":
        """The same response, which will not be completed."""
        shown: dict[str, Any] = msgspec.json.decode(self.response)
        shown |= {"status": "failed", "error": {"code": "server_error", "message": message}}
        return msgspec.structs.replace(self, response=msgspec.json.encode(shown), is_open=False)


def decode_record(data: bytes) -> Record:
    return _DECODER.decode(data)


class _Status(msgspec.Struct):
    status: str


class _Output(msgspec.Struct):
    output: list[dict[str, Any]]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Record)
_ITEMS = msgspec.json.Decoder(list[dict[str, Any]])
_STATUS = msgspec.json.Decoder(_Status)
_OUTPUT = msgspec.json.Decoder(_Output)
