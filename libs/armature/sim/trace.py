"""Recorded traffic: requests with their times, and the content of their prompts as one number a block.

The numbers are made into token ids, all tokens of a block the same, so that real hashing, scheduling and block pools
can be driven with them. Equal numbers in equal places of a prefix are equal content, and no more is known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from armature.blocks.hashing import BlockDigest, BlockHasher


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace.

    Raises:
        ValueError: there is no prompt, no output, a negative time, or the contents don't cover the prompt.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    contents: Sequence[int]
    """A number for each block of the prompt, a partial one at the end included."""

    def check(self, block_size: int) -> None:
        """Raise if the request makes no sense for blocks of this size."""
        if not 0 <= self.arrival_s < float("inf"):
            raise ValueError(f"it arrives at {self.arrival_s} s; that must be at least 0")
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(
                f"it has {self.prompt_tokens} prompt and {self.output_tokens} output tokens; 1 is the least"
            )
        needed = -(-self.prompt_tokens // block_size)
        if len(self.contents) != needed:
            given = f"it has {len(self.contents)} block ids"
            raise ValueError(f"{given}; {self.prompt_tokens} tokens are {needed} blocks of {block_size}")


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    requests: Sequence[TraceRequest]
    block_size: int

    def sped_up(self, speedup: float) -> "Trace":
        """The same requests at `speedup` times the rate.

        Raises:
            ValueError: the factor is not above 0.
        """
        if not 0 < speedup < float("inf"):
            raise ValueError(f"the speed-up is {speedup}; it must be above 0")
        faster = [
            TraceRequest(one.arrival_s / speedup, one.prompt_tokens, one.output_tokens, one.contents)
            for one in self.requests
        ]
        return Trace(faster, self.block_size)


class ContentHasher(BlockHasher):
    """Hashes blocks by their first and last token.

    That tells them apart: a block of a prompt is all one number, and one that an answer has filled ends with a number
    that only this request has. It spares hashing 150 million equal numbers a trace.
    """

    def __init__(self, block_size: int) -> None:
        super().__init__(b"", block_size)
        self._pairs = BlockHasher(b"", 2)

    def extend(self, parent: BlockDigest, token_ids: Sequence[int]) -> list[BlockDigest]:
        block_size = self.block_size
        whole = len(token_ids) // block_size * block_size
        ends = [0] * (2 * whole // block_size)
        ends[::2] = token_ids[0:whole:block_size]
        ends[1::2] = token_ids[block_size - 1 : whole : block_size]
        return self._pairs.extend(parent, ends)


def prompt_token_ids(request: TraceRequest, block_size: int) -> list[int]:
    """The prompt as tokens, all of a block the same."""
    token_ids: list[int] = []
    for content in request.contents:
        token_ids += [content] * block_size
    del token_ids[request.prompt_tokens :]
    return token_ids
