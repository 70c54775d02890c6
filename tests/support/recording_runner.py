"""A runner that writes down which block cell holds the KV of which token, and catches every read of a wrong one.

The KV of a token is a fingerprint of all tokens up to it; the next token follows from the fingerprint, so wrong KV also
shows as a wrong answer. `expected_answer` says what a request must be answered, without blocks or batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.scheduling.limits import Limits
from armature.scheduling.plan import SampledToken, Slice, StepPlan
from armature.scheduling.request import FinishReason, Request

_PRIME = (1 << 61) - 1


def fingerprints(root: bytes, token_ids: Sequence[int]) -> list[int]:
    """The KV of each token."""
    value = int.from_bytes(root, "little") % _PRIME
    values: list[int] = []
    for token_id in token_ids:
        value = (value * 1_000_003 + token_id + 1) % _PRIME
        values.append(value)
    return values


def next_token(fingerprint: int, request: Request, vocab_size: int) -> int:
    return (fingerprint ^ (request.sampling.seed * 7919)) % vocab_size


def expected_answer(request: Request, limits: Limits, pool_tokens: int) -> tuple[list[int], FinishReason]:
    """Output tokens, those that came with the request included, and why they end."""
    tokens = list(request.token_ids)
    sampling = request.sampling
    stops = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(limits.eos_token_ids))
    end = min(request.prompt_tokens + request.max_tokens, limits.context_length, pool_tokens)
    while True:
        if tokens[-1] in stops and len(tokens) - request.prompt_tokens > sampling.min_tokens:
            return tokens[request.prompt_tokens :], FinishReason.STOP
        if len(tokens) >= end:
            break
        tokens.append(next_token(fingerprints(request.root, tokens)[-1], request, limits.vocab_size))
    return tokens[request.prompt_tokens :], FinishReason.LENGTH


@dataclass
class Block:
    """What is in one block's memory."""

    cells: list[int]
    digest: bytes = b""


class RecordingRunner:
    """Executes plans over recorded cells and asserts that every read finds what was meant."""

    def __init__(self, num_blocks: int, hasher: BlockHasher, vocab_size: int) -> None:
        self._hasher = hasher
        self._size = hasher.block_size
        self._vocab_size = vocab_size
        self.blocks = [Block([-1] * self._size) for _ in range(num_blocks)]
        self.forgotten: list[str] = []

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        assert len({id(piece.sequence) for piece in plan.slices()}) == len(plan.slices()), "one slice per sequence"
        for block_id in plan.opened:
            self.blocks[block_id] = Block([-1] * self._size)
        for piece in plan.slices():
            self._check_reads(piece)
        written: set[tuple[int, int]] = set()
        sampled = [token for piece in plan.slices() for token in self._compute(piece, written)]
        for block_id, digest in plan.sealed:
            assert all(cell >= 0 for cell in self.blocks[block_id].cells), f"block {block_id} is sealed half empty"
            self.blocks[block_id].digest = digest
        return sampled

    def rest(self) -> None:
        pass

    def open_blocks(self, block_ids: Sequence[int]) -> None:
        assert 0 not in block_ids, "the scratch block was handed out"
        for block_id in block_ids:
            self.blocks[block_id].digest = b""

    def forget(self, request_id: str) -> None:
        self.forgotten.append(request_id)

    def write(self, block_id: int, cells: Sequence[int], digest: bytes) -> None:
        """What a transport does."""
        self.blocks[block_id] = Block(list(cells), digest)

    def holds(self, block_id: int, root: BlockDigest, token_ids: Sequence[int], index: int) -> bool:
        """Whether a block holds, complete and sealed, the KV of the prompt's block `index`."""
        start, end = index * self._size, (index + 1) * self._size
        block = self.blocks[block_id]
        digests = self._hasher.extend(root, token_ids[:end])
        return block.cells == fingerprints(root, token_ids)[start:end] and block.digest == digests[index]

    def _check_reads(self, piece: Slice) -> None:
        sequence = piece.sequence
        assert piece.count > 0
        assert piece.start + piece.count <= len(sequence.block_ids) * self._size, "tokens without a block"
        expected = fingerprints(sequence.request.root, sequence.token_ids[: piece.start])
        for position, value in enumerate(expected):
            block = self.blocks[sequence.block_ids[position // self._size]]
            assert block.cells[position % self._size] == value, (
                f"request {sequence.request.request_id} reads foreign KV at position {position}"
            )

    def _compute(self, piece: Slice, written: set[tuple[int, int]]) -> list[SampledToken]:
        sequence = piece.sequence
        end = piece.start + piece.count
        values = fingerprints(sequence.request.root, sequence.token_ids[:end])
        for position in range(piece.start, end):
            block_id, offset = sequence.block_ids[position // self._size], position % self._size
            assert (block_id, offset) not in written, "two sequences write one cell"
            assert not self.blocks[block_id].digest, "a sealed block is written"
            written.add((block_id, offset))
            self.blocks[block_id].cells[offset] = values[position]
        if not piece.samples:
            return []
        assert end == len(sequence.token_ids), "a token is sampled before the last one is computed"
        return [SampledToken(next_token(values[-1], sequence.request, self._vocab_size))]
