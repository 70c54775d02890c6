"""One worker's load as far as it is known: its last report, and what was placed on it since.

The queue is a clock that runs ahead: `busy_until_s` is when the worker will have computed all prompts given to it. A
report sets it, a placement moves it, time catches up with it. All that placement reads is written into the worker's
column.
"""

import math
from typing import NamedTuple

import numpy as np

from armature.index.tiers import LOWER_TIERS
from armature.performance.linear import LinearModel
from armature.performance.step import StepShape
from armature.routing import columns as at
from armature.routing.columns import NUM_ROWS, Floats
from armature.routing.worker import UNMEASURED, Load, Role, Speeds, Worker
from armature.scheduling.lower_tiers import TierSpeed

Key = tuple[str, str]
"""Owner and request id."""

_NO_SPEED = TierSpeed(0.0)

# Workers are compared by the time of such a prompt.
_REFERENCE = StepShape(0, 0, 2048, 2048 * 2048 / 2)


class Share(NamedTuple):
    """What one request asks of one worker."""

    placed_s: float
    prefill_s: float
    tokens: int
    """Prompt tokens to compute there."""
    cached_tokens: int
    """Tokens before those."""
    blocks: int
    """Blocks that it needs besides those it finds there."""


class Pace(NamedTuple):
    """How fast a worker is, by its own measurements or by a guess."""

    speeds: Speeds
    steps: LinearModel | None = None


def reference_s(steps: LinearModel) -> float:
    """Computing a prompt of middling length alone."""
    return steps.step_s(_REFERENCE)


class Account:
    """What a worker has to do, and how fast it does it."""

    def __init__(self, worker: Worker, assumed: Pace) -> None:
        self.measured = Pace(UNMEASURED)
        self.is_gone = False
        self.requests = 0
        """Requests of this router that have not ended on this worker."""
        self.busy_until_s = 0.0
        self.running_seqs = 0
        self.waiting_seqs = 0
        self.free_blocks = worker.num_blocks
        self._assumed = assumed
        self._load = Load(free_blocks=worker.num_blocks)
        self._decoding = 0
        self._pending: dict[Key, Share] = {}
        """Requests without a token yet, oldest first."""
        self._pending_tokens = 0
        self._unseen: dict[Key, Share] = {}
        """Those of them that no report shows yet."""
        self._unseen_blocks = 0
        self._waiting_blocks = 0
        self.column: Floats = np.zeros(NUM_ROWS)
        self.column[at.LAST_PLACED_S] = -math.inf
        self.column[at.TURN] = -1
        self.describe(worker)

    @property
    def num_unmeasured(self) -> int:
        """Quantities that the worker has not told yet."""
        return self.measured.speeds.count(0.0) + (self.measured.steps is None)

    def describe(self, worker: Worker) -> None:
        """Take over what the worker is."""
        self.worker = worker
        self.worker_id = worker.worker_id
        column = self.column
        column[at.BLOCK_SIZE] = worker.block_size
        column[at.NUM_BLOCKS] = worker.num_blocks
        column[at.CAPACITY] = 0 if worker.is_draining else worker.num_blocks
        column[at.MAX_BATCH_TOKENS] = worker.max_num_batched_tokens
        column[at.MAX_SEQS] = worker.max_num_seqs
        column[at.IS_DECODE] = worker.role is Role.DECODE
        self._read()
        self._pace()
        self._sum_up()

    def assume(self, assumed: Pace) -> None:
        """Use this where the worker has measured nothing itself."""
        self._assumed = assumed
        self._pace()

    def report(self, load: Load, now_s: float, settle_s: float) -> None:
        """Take over what the worker says; only what was placed just now is still to be added to it."""
        is_same = load.speeds == self._load.speeds and load.steps == self._load.steps
        reads_alike = load.reading is self._load.reading or load.reading == self._load.reading
        self._load = load
        if not reads_alike:
            self._read()
        if not is_same:
            speeds, known = load.speeds, self.measured
            if 0.0 in speeds:
                speeds = Speeds(*(new or old for new, old in zip(speeds, known.speeds, strict=True)))
            self.measured = Pace(speeds, load.steps or known.steps)
        self._pace()
        if self._unseen:
            self._unseen = {key: share for key, share in self._unseen.items() if share.placed_s > now_s - settle_s}
            self._unseen_blocks = sum([share.blocks for share in self._unseen.values()])
        self.busy_until_s = now_s + self._left_s(load.waiting_prefill_tokens)
        self._waiting_blocks = self._blocks_waited_for(load)
        self._sum_up()

    def open(self, key: Key, share: Share) -> None:
        """A request is placed here."""
        self.requests += 1
        self._pending[key] = self._unseen[key] = share
        self._pending_tokens += share.tokens
        self._unseen_blocks += share.blocks
        self.busy_until_s = max(self.busy_until_s, share.placed_s) + share.prefill_s
        self.column[at.LAST_PLACED_S] = share.placed_s
        self._sum_up()

    def first_token(self, key: Key) -> None:
        """A request placed here decodes here now."""
        self._decoding += 1
        self._settle(key)
        self._sum_up()

    def close(self, key: Key, *, was_decoding: bool, has_computed: bool) -> None:
        """A request has ended here; if its prompt was never computed, the queue is shorter by it."""
        self.requests -= 1
        self._decoding -= was_decoding
        share = self._settle(key)
        if share is not None and not has_computed:
            self.busy_until_s -= share.prefill_s
        self._sum_up()

    def _settle(self, key: Key) -> Share | None:
        share = self._pending.pop(key, None)
        if share is not None:
            self._pending_tokens -= share.tokens
            if self._unseen.pop(key, None) is not None:
                self._unseen_blocks -= share.blocks
        return share

    def _left_s(self, waiting_tokens: int) -> float:
        """Seconds of computing before the worker: prompts are computed in the order in which they were placed.

        How much a waiting token costs depends on whose it is, so what is said to wait is looked for among the prompts
        placed here. What is not found, others have placed.
        """
        unseen_s, unseen_tokens = 0.0, 0
        for share in self._unseen.values():
            unseen_s += share.prefill_s
            unseen_tokens += share.tokens
        done = self._pending_tokens - unseen_tokens - waiting_tokens
        if waiting_tokens == 0:
            return unseen_s
        left_s = -done * self.token_s if done < 0 else 0.0
        unseen = self._unseen
        for key, share in self._pending.items():
            if key in unseen:
                break
            if done >= share.tokens:
                done -= share.tokens
            elif done > 0:
                left_s += self.compute_s(share.tokens - done, share.cached_tokens + done)
                done = 0
            else:
                left_s += share.prefill_s
        return left_s + unseen_s

    def _blocks_waited_for(self, load: Load) -> int:
        """Blocks that those ask for who wait in the worker's line: who computes already has his.

        The last to be placed wait; for others' requests all that there is to compute is taken to be theirs.
        """
        if not load.waiting_seqs:
            return 0
        seen = [share for key, share in self._pending.items() if key not in self._unseen]
        waiting = seen[-load.waiting_seqs :]
        if len(waiting) < load.waiting_seqs:
            return load.waiting_prefill_tokens // self.worker.block_size
        return sum([share.blocks for share in waiting])

    def compute_s(self, tokens: float, cached_tokens: float) -> float:
        """Computing so many tokens of a prompt behind those before them."""
        chunks = -(-tokens // self.worker.max_num_batched_tokens)
        return tokens * (self.token_s + self.pair_s * (cached_tokens + tokens / 2)) + chunks * self.chunk_s

    def _read(self) -> None:
        column, block_bytes, reading = self.column, self.worker.block_bytes, self._load.reading
        column[at.BLOCK_PULL_S] = block_bytes / reading.pull_bytes_per_s if reading.pull_bytes_per_s else 0.0
        for i, tier in enumerate(LOWER_TIERS):
            speed = reading.tiers.get(tier, _NO_SPEED)
            column[at.BLOCK_ONBOARD_S + i] = block_bytes / speed.bytes_per_s if speed.bytes_per_s else 0.0
            column[at.ONBOARD_LATENCY_S + i] = speed.latency_s

    def _pace(self) -> None:
        speeds, assumed = self.measured.speeds, self._assumed.speeds
        decode_step_s = speeds.decode_step_s or assumed.decode_step_s
        steps = self.measured.steps
        if steps is None and not speeds.prefill_tokens_per_s:
            steps = self._assumed.steps
        column, load = self.column, self._load
        if steps is None:
            rate = speeds.prefill_tokens_per_s or assumed.prefill_tokens_per_s
            # A measured rate has all that a prompt costs in it; the first token's step comes on top.
            self.token_s, self.pair_s, self.chunk_s, first_s = 1 / rate, 0.0, 0.0, decode_step_s
            stream_s = context_s = 0.0
        else:
            context_tokens = (self.worker.num_blocks - load.free_blocks) * self.worker.block_size
            self.token_s, self.pair_s, first_s = steps.prefill_token_s, steps.prefill_pair_s, 0.0
            self.chunk_s = steps.fixed_s + steps.decode_s * load.running_seqs + steps.context_token_s * context_tokens
            decode_step_s = max(decode_step_s, self.chunk_s)
            stream_s, context_s = steps.decode_s, steps.context_token_s
        transfer_bytes_per_s = speeds.transfer_bytes_per_s or assumed.transfer_bytes_per_s
        column[at.TOKEN_S] = self.token_s
        column[at.PAIR_S] = self.pair_s
        column[at.CHUNK_S] = self.chunk_s
        column[at.FIRST_S] = first_s
        column[at.DECODE_STEP_S] = decode_step_s
        column[at.STREAM_S] = stream_s
        column[at.CONTEXT_S] = context_s
        column[at.REFERENCE_S] = reference_s(self.measured.steps) if self.measured.steps else 0.0
        column[at.BLOCK_READ_S] = self.worker.block_bytes / transfer_bytes_per_s

    def _sum_up(self) -> None:
        load, column = self._load, self.column
        self.running_seqs = load.running_seqs if load.running_seqs > self._decoding else self._decoding
        self.waiting_seqs = load.waiting_seqs + len(self._unseen)
        self.free_blocks = load.free_blocks - self._waiting_blocks - self._unseen_blocks
        column[at.BUSY_UNTIL_S] = self.busy_until_s
        column[at.STREAMS] = self.running_seqs + self.waiting_seqs
        column[at.WAITING] = self.waiting_seqs
        column[at.FREE_BLOCKS] = self.free_blocks
        column[at.REQUESTS] = self.requests
