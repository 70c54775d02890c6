"""What one engine step computes, and what comes back: the words between the scheduler and a model runner."""

from array import array
from dataclasses import dataclass
from typing import NamedTuple

from armature.blocks.hashing import BlockDigest
from armature.scheduling.request import PromptLogprobs, Request, TokenLogprobs


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's tokens and blocks while an engine has it. The scheduler writes it, the runner only reads."""

    request: Request
    token_ids: "array[int]"
    """Prompt and output so far, as unsigned 32-bit integers: four bytes a token, as runners and hashes want them."""
    block_ids: list[int]
    """Blocks of the pool in prompt order; block i holds tokens `i * block_size` onwards."""

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.request.prompt_tokens

    @property
    def scores_prompt(self) -> bool:
        """Whether it is still to be told how likely the prompt's tokens were: with the first token made here."""
        request = self.request
        return request.sampling.prompt_logprobs is not None and len(self.token_ids) == len(request.token_ids)


@dataclass(slots=True, eq=False)
class Slice:
    """A run of one sequence's tokens to compute: `token_ids[start : start + count]`, its KV before `start` is there.

    Nobody changes one; it is not frozen because many are made, and freezing costs four times more.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """Whether the next token is chosen from the logits of the last of these tokens."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass over running answers and chunks of prompts.

    Before it: the digests at the end of `opened` blocks are zeroed, since new content is about to be written (blocks
    reserved for a transport are not here: they were opened by `Runner.open_blocks` when they were reserved). After it:
    `sealed` blocks are complete and get their digests.
    """

    chunks: tuple[Slice, ...]
    """Of prompts, or of answers that are computed anew."""
    opened: tuple[int, ...] = ()
    sealed: tuple[tuple[int, BlockDigest], ...] = ()
    decodes: tuple[Sequence, ...] = ()
    """Running answers: the last token of each is computed, and the next one sampled."""
    prefill_tokens: int = 0
    """Tokens of all chunks."""

    @property
    def num_samples(self) -> int:
        """Tokens that the step yields."""
        return len(self.decodes) + sum([piece.samples for piece in self.chunks])

    def slices(self) -> list[Slice]:
        """All that is computed, running answers first. Made anew at every call: only runners need it."""
        return [Slice(one, len(one.token_ids) - 1, 1, True) for one in self.decodes] + list(self.chunks)


class SampledToken(NamedTuple):
    """The next token of one answer, or of one chunk that samples."""

    token_id: int
    logprobs: TokenLogprobs | None = None
    is_last: bool = False
    """Nothing can follow it: what the answer must match is complete."""
    error: str = ""
    """Why there is no token for this request, which ends; the others of the step are not concerned."""
    embedding: bytes = b""
    """Of an EMBED request: see `TokenOutput`."""
    prompt_logprobs: PromptLogprobs | None = None
    """See `TokenOutput`."""
