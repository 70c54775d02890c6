"""Drives a model runner by hand: one list of blocks, plans written out, no scheduler."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import count

from armature.blocks.hashing import BlockDigest
from armature.engines.runner import Runner
from armature.scheduling.plan import SampledToken, Sequence, Slice, StepPlan
from armature.scheduling.request import Request, Sampling

GREEDY = Sampling(temperature=0.0)


@dataclass
class Driver:
    """Gives out blocks of a runner and computes sequences over them."""

    runner: Runner
    free: list[int] = field(default_factory=list[int])
    numbers: count = field(default_factory=count)

    def __post_init__(self) -> None:
        # Handed out from the end and out of order, so that a block's place in a table and its id never agree.
        blocks = list(range(self.runner.info.num_blocks))
        self.free = blocks[::2] + blocks[1::2]

    def sequence(self, prompt: Items[int], sampling: Sampling = GREEDY, room: int = 64) -> Sequence:
        """A sequence with blocks for its prompt and `room` more tokens."""
        request_id = f"r{next(self.numbers)}"
        request = Request(request_id, list(prompt), len(prompt), room, BlockDigest(bytes(16)), sampling)
        needed = -(-(len(prompt) + room) // self.runner.info.block_size)
        return Sequence(request, list(prompt), [self.free.pop() for _ in range(needed)])

    def step(self, *slices: Slice) -> list[SampledToken]:
        """Compute the slices as one step and append what was sampled to their sequences."""
        found = list(self.runner.execute(StepPlan(tuple(slices))))
        for one, sampled in zip([one for one in slices if one.samples], found, strict=True):
            one.sequence.token_ids.append(sampled.token_id)
        return found

    def prefill(self, sequence: Sequence, chunk: int = 1 << 30, start: int = 0) -> None:
        """Compute a prompt in chunks and sample the first token."""
        end = len(sequence.token_ids)
        for at in range(start, end, chunk):
            size = min(chunk, end - at)
            self.step(Slice(sequence, at, size, samples=at + size == end))

    def decode(self, sequences: Items[Sequence], steps: int) -> None:
        for _ in range(steps):
            self.step(*[next_token(one) for one in sequences])

    def generate(self, prompt: Items[int], tokens: int, sampling: Sampling = GREEDY, chunk: int = 1 << 30) -> list[int]:
        """Output tokens of one sequence alone."""
        sequence = self.sequence(prompt, sampling, tokens)
        self.prefill(sequence, chunk)
        self.decode([sequence], tokens - 1)
        return output(sequence)


def next_token(sequence: Sequence) -> Slice:
    """The slice that computes the last token and samples the next."""
    return Slice(sequence, len(sequence.token_ids) - 1, 1, samples=True)


def output(sequence: Sequence) -> list[int]:
    return sequence.token_ids[sequence.request.prompt_tokens :]
