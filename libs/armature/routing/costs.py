"""What serving a prompt would cost, in seconds, by every way there is to serve it.

Two ways: compute the prompt on the decode worker, or on a prefill worker and read its blocks. A cost is the predicted
time to first token and the harm done to others, weighed (`policy.py`). It is a prediction from each worker's own
measurements; it decides nothing.

The harm of a prompt computed on a decode worker counts the streams that run there, those that wait before it, since
they run by the time that it is computed, and one to come, so that long prompts leave even an idle decode worker to its
trade. Prompts computed on prefill workers stall nobody.
"""

from collections.abc import Iterable
from typing import NamedTuple

from armature.routing.decision import Candidate
from armature.routing.ledger import Account
from armature.routing.policy import Policy


class Prefiller(NamedTuple):
    """A prefill worker's side of the cost, the same whoever reads."""

    ready_s: float
    """Until the computing can begin."""
    compute_s: float
    requests: int
    last_placed_s: float
    prefill_id: str
    num_chunks: int
    """Steps in which the prompt is computed, each read while the next is computed."""
    overlap_blocks: int
    queue_s: float
    room_s: float


class CostModel:
    """Prices candidates under one policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def is_full(self, account: Account, blocks: int) -> bool:
        """Whether too much waits on a worker already for a request that needs `blocks` more blocks."""
        if account.waiting_seqs >= self._policy.max_waiting_seqs:
            return True
        short_blocks = blocks - account.free_blocks
        return short_blocks > 0 and short_blocks > self._policy.kv_overcommit * account.num_blocks

    def room_s(self, account: Account, blocks: int) -> float:
        """Until a worker has `blocks` free blocks and a place in its batch."""
        short_blocks = blocks - account.free_blocks
        short_seqs = account.running_seqs + account.waiting_seqs + 1 - account.max_num_seqs
        if short_blocks <= 0 and short_seqs <= 0:
            return 0.0
        return self._policy.turnover_s * max(short_blocks / account.num_blocks, short_seqs / account.max_num_seqs)

    def local(self, account: Account, overlap: int, prompt_tokens: int, now_s: float) -> Candidate:
        """The prompt is computed where it is decoded; `overlap` blocks of it are there."""
        block_size = account.block_size
        uncached_tokens = prompt_tokens - overlap * block_size
        prefill_s = uncached_tokens * account.token_s
        queue_s = account.busy_until_s - now_s
        if queue_s < 0:
            queue_s = 0.0
        room_s = self.room_s(account, prompt_tokens // block_size + 1 - overlap)
        ttft_s = queue_s + room_s + prefill_s + account.decode_step_s
        harm_s = self._policy.work * prefill_s + self._harm_s(account, uncached_tokens)
        return Candidate(
            account.worker_id, "", ttft_s + harm_s, ttft_s, queue_s, room_s, prefill_s, 0.0, account.decode_step_s,
            harm_s, overlap, 0,
        )  # fmt: skip

    def remote(
        self, account: Account, overlap: int, prompt_tokens: int, prefillers: Iterable[Prefiller], now_s: float
    ) -> Candidate | None:
        """The cheapest way with a prefill worker; None if there is none or every whole block is here already."""
        block_size, policy = account.block_size, self._policy
        whole = (prompt_tokens - 1) // block_size
        if overlap >= whole:
            return None
        transfer_s = (whole - overlap) * account.worker.block_bytes / account.transfer_bytes_per_s
        tail_tokens = prompt_tokens - whole * block_size
        tail_s = tail_tokens * account.token_s + account.decode_step_s
        room_s = self.room_s(account, prompt_tokens // block_size + 1 - overlap)
        own_queue_s, own_harm_s = account.busy_until_s - now_s, self._harm_s(account, tail_tokens)
        best: Candidate | None = None
        for prefiller in prefillers:
            compute_s = prefiller.compute_s
            # A pipeline of two stages over equal chunks: the longer one, and one chunk of the shorter.
            shorter_s = transfer_s if transfer_s < compute_s else compute_s
            exposed_s = transfer_s - shorter_s + shorter_s / prefiller.num_chunks + policy.remote_overhead_s
            landed_s = prefiller.ready_s + compute_s + exposed_s
            # The tail waits for the prompts that came before on the decode worker too.
            behind_s = own_queue_s - landed_s if own_queue_s > landed_s else 0.0
            ttft_s = landed_s + behind_s + room_s + tail_s
            harm_s = policy.work * compute_s + own_harm_s
            if best is None or ttft_s + harm_s < best.cost_s:
                best = Candidate(
                    account.worker_id, prefiller.prefill_id, ttft_s + harm_s, ttft_s,
                    prefiller.queue_s + behind_s, prefiller.room_s + room_s, compute_s, exposed_s, tail_s, harm_s,
                    overlap, prefiller.overlap_blocks,
                )  # fmt: skip
        return best

    def prefiller(self, account: Account, overlap: int, prompt_tokens: int, now_s: float) -> Prefiller:
        """The prefill side of having whole blocks computed on a worker that holds `overlap` of them."""
        missing = (prompt_tokens - 1) // account.block_size - overlap
        tokens = missing * account.block_size
        queue_s, room_s = max(account.busy_until_s - now_s, 0.0), self.room_s(account, missing)
        num_chunks = -(-tokens // account.worker.max_num_batched_tokens) or 1
        return Prefiller(
            queue_s + room_s, tokens * account.token_s, account.requests, account.last_placed_s, account.worker_id,
            num_chunks, overlap, queue_s, room_s,
        )  # fmt: skip

    def _harm_s(self, account: Account, tokens: int) -> float:
        """What computing so many tokens, and one more stream, do to the streams of a decode worker."""
        policy, streams = self._policy, account.running_seqs + account.waiting_seqs
        harm_s = policy.crowding * account.decode_step_s * streams
        stalling_tokens = tokens - policy.ride_along_tokens
        if stalling_tokens > 0:
            harm_s += policy.interference * stalling_tokens * account.token_s * (streams + 1)
        return harm_s


def frontier(prefillers: Iterable[Prefiller]) -> list[Prefiller]:
    """Those that could be the best for some decode worker: nobody else both begins earlier and computes faster.

    Every decode worker's cost grows with both, so the best pair is found without trying all pairs. Of equals the one
    with the fewest requests stays, then the one placed on longest ago, then the first by id.
    """
    kept: list[Prefiller] = []
    for prefiller in sorted(prefillers):
        if not kept or prefiller.compute_s < kept[-1].compute_s:
            kept.append(prefiller)
    return kept
