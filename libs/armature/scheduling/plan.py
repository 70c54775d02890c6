"""What one engine step computes, and what comes back: the words between the scheduler and a model runner."""

from dataclasses import dataclass
from typing import NamedTuple

from armature.blocks.hashing import BlockDigest
from armature.scheduling.request import Request, TokenLogprobs


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's tokens and blocks while an engine has it. The scheduler writes it, the runner only reads."""

    request: Request
    token_ids: list[int]
    """Prompt and output so far."""
    block_ids: list[int]
    """Blocks of the pool in prompt order; block i holds tokens `i * block_size` onwards."""

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.request.prompt_tokens


@dataclass(slots=True, eq=False)
class Slice:
    """A run of one sequence's tokens to compute: `token_ids[start : start + count]`, its KV before `start` is there.

    Nobody changes one; it is not frozen because one is made per sequence and step, and freezing costs four times more.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """Whether the next token is chosen from the logits of the last of these tokens."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass over all slices.

    Before it: the digests at the end of `opened` blocks are zeroed, since new content is about to be written (blocks
    reserved for a transport are not here: they were opened by `Runner.open_blocks` when they were reserved). After it:
    `sealed` blocks are complete and get their digests.
    """

    slices: tuple[Slice, ...]
    """Running answers, one token each, then chunks of prompts."""
    opened: tuple[int, ...] = ()
    sealed: tuple[tuple[int, BlockDigest], ...] = ()
    num_decodes: int = 0
    """How many of the slices are running answers."""
    prefill_tokens: int = 0
    """Tokens of the other slices."""


class SampledToken(NamedTuple):
    """The next token of one slice that samples."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    is_last: bool = False
    """Nothing can follow it: what the answer must match is complete."""
    error: str = ""
    """Why there is no token for this request, which ends; the others of the step are not concerned."""
