"""Recorded traffic: requests with their times, and the content of their prompts as one number a block.

The numbers are made into token ids, all tokens of a block the same, so that real hashing, scheduling and block pools
can be driven with them. Equal numbers in equal places of a prefix are equal content, and no more is known.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol

import numpy as np

from armature.blocks.hashing import BlockDigest, BlockHasher

FIRST_ANSWER = 1 << 31
"""Contents of prompts are below. From here on each answer has a number of its own; token ids end at 2^32."""


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
    """A number below `FIRST_ANSWER` for each block of the prompt, a partial one at the end included."""
    tenant: str = ""
    session_id: str = ""
    priority: int = 0

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


class Requests(Protocol):
    """In order of arrival; they are gone through once a run, so they may be made up on the way."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[TraceRequest]: ...


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests whose contents are numbered in blocks of one size."""

    requests: Requests
    block_size: int

    def sped_up(self, speed_up: float) -> "Trace":
        """The same requests at `speed_up` times the rate.

        Raises:
            ValueError: the factor is not above 0.
        """
        if not 0 < speed_up < float("inf"):
            raise ValueError(f"the speed-up is {speed_up}; it must be above 0")
        if speed_up == 1:
            return self
        return replace(self, requests=[replace(one, arrival_s=one.arrival_s / speed_up) for one in self.requests])

    def cut_out(self, start_s: float = 0.0, duration_s: float = float("inf"), num_requests: int = 0) -> "Trace":
        """A slice that begins at its own 0; what is equal in the whole trace is equal in it. 0 requests: all.

        Raises:
            ValueError: a bound is negative, or nothing is left.
        """
        if not (start_s >= 0 and duration_s > 0 and num_requests >= 0):
            raise ValueError(f"a slice of {num_requests} requests from {start_s} s for {duration_s} s makes no sense")
        end_s = start_s + duration_s
        within = (one for one in self.requests if start_s <= one.arrival_s < end_s)
        if (start_s, duration_s, num_requests) == (0.0, float("inf"), 0):
            return self
        kept = [replace(one, arrival_s=one.arrival_s - start_s) for one in islice(within, num_requests or None)]
        if not kept:
            raise ValueError(f"no request arrives from {start_s:g} s for {duration_s:g} s")
        return replace(self, requests=kept)


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


def prompt_token_ids(request: TraceRequest, block_size: int) -> "array[int]":
    """The prompt as tokens, all of a block the same."""
    token_ids = np.array(request.contents, np.uint32).repeat(block_size)[: request.prompt_tokens]
    return array("I", token_ids.tobytes())
