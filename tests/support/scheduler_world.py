"""A scheduler among random clients, transports and readers, with everything it says checked against what is true."""

from dataclasses import dataclass, field
from random import Random

from armature.blocks.events import KvEventKind
from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.blocks.pool import BlockPool
from armature.index.tiers import Tier
from armature.performance.fit import StepFit
from armature.scheduling.limits import Limits
from armature.scheduling.lower_tiers import LowerTiers, TierChange
from armature.scheduling.offloading import OffloadRun, OffloadTiming
from armature.scheduling.request import (
    FinishReason,
    OffloadNews,
    Request,
    Reserved,
    Sampling,
    Staged,
    TokenOutput,
    Work,
)
from armature.scheduling.scheduler import Scheduler
from tests.support.recording_runner import RecordingRunner, expected_answer, fingerprints

VOCAB_SIZE = 50
EOS = 7


@dataclass
class Client:
    """One request as its sender sees it."""

    request: Request
    tokens: list[int]
    end: TokenOutput | None = None
    is_aborted: bool = False
    reserved: Reserved | None = None
    landed: int = 0
    is_fetching: bool = False
    staged: dict[int, int] = field(default_factory=dict)
    """Prompt index to block id of announced, unreleased blocks."""
    has_last: bool = False
    is_released: bool = False


class World:
    """Owns scheduler and runner and knows what every request must be answered."""

    def __init__(
        self,
        seed: int,
        *,
        num_blocks: int,
        max_num_seqs: int,
        budget: int,
        max_waiting: int = 1000,
        below: OffloadTiming | None = None,
    ) -> None:
        """`below`: there is a tier below the device, and so its blocks are offered to it."""
        self.random = Random(seed)
        self.hasher = BlockHasher(b"secret", 4)
        self.pool = BlockPool(num_blocks)
        self.limits = Limits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            context_length=60,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=(EOS,),
            max_waiting=max_waiting,
        )
        self.lower = LowerTiers(StepFit(), block_size=4, block_bytes=100, chunk_tokens=budget)
        self.below: dict[BlockDigest, list[int]] = {}
        """What the cells of each block below hold."""
        self.runs: list[OffloadRun] = []
        """Offered and not yet copied."""
        self.timing = below
        lower = None if below is None else self.lower
        self.scheduler = Scheduler(self.limits, self.pool, self.hasher, lower, below)
        self.runner = RecordingRunner(num_blocks, self.hasher, VOCAB_SIZE)
        self.pool_tokens = self.pool.total_blocks * 4
        self.clients: dict[str, Client] = {}
        self.quarantined: list[int] = []
        self.cached: dict[BlockDigest, None] = {}
        self.last_seq = 0
        self.log: list[object] = []
        self.roots = [self.hasher.root("model", namespace) for namespace in ("a", "b")]
        self.steps = 0
        self.poison: set[str] = set()
        """Requests whose steps fail."""

    # --- what clients, transports and readers do

    def submit(self, request: Request) -> Client:
        client = Client(request, list(request.token_ids[request.prompt_tokens :]))
        self.clients[request.request_id] = client
        self.scheduler.submit(request)
        return client

    def random_request(self) -> Request:
        """Prompts of few tokens in few shapes, so that prefixes are often shared."""
        rnd = self.random
        prompt = [rnd.randrange(3)] * rnd.randrange(1, 24) + [
            rnd.randrange(VOCAB_SIZE) for _ in range(rnd.randrange(4))
        ]
        work = rnd.choice([Work.GENERATE, Work.GENERATE, Work.GENERATE, Work.PREFILL])
        moved = [rnd.randrange(8, VOCAB_SIZE) for _ in range(rnd.choice([0, 0, 0, 5]))] if work is Work.GENERATE else []
        sampling = Sampling(
            seed=rnd.randrange(4),
            stop_token_ids=frozenset({rnd.randrange(VOCAB_SIZE)}) if rnd.random() < 0.2 else frozenset(),
            ignore_eos=rnd.random() < 0.3,
            min_tokens=rnd.choice([0, 0, 3]),
        )
        return Request(
            request_id=f"r{len(self.clients)}",
            token_ids=prompt + moved,
            prompt_tokens=len(prompt),
            max_tokens=rnd.choice([1, 3, 8, 30]),
            root=rnd.choice(self.roots),
            sampling=sampling,
            work=work,
            remote=work is Work.GENERATE and rnd.random() < 0.4,
            first_block=rnd.choice([0, 0, 2]) if work is Work.PREFILL else 0,
            cached_only=work is Work.PREFILL and rnd.random() < 0.3,
            priority=rnd.choice([0, 0, 0, 1, -2]),
        )

    def abort(self, client: Client) -> None:
        client.is_aborted = True
        self.scheduler.abort(client.request.request_id)
        if client.request.work is Work.PREFILL:
            self._forget_staged(client)

    def land(self, client: Client, num_blocks: int) -> None:
        """The transport brings blocks in order and they are verified."""
        assert client.reserved is not None
        request, reserved = client.request, client.reserved
        if reserved.is_onboarding:
            self._onboard(client, reserved, num_blocks)
            return
        for index in range(client.landed, num_blocks):
            start = (reserved.first_block + index) * 4
            cells = fingerprints(request.root, request.token_ids)[start : start + 4]
            self.runner.write(reserved.block_ids[index], cells, reserved.digests[index])
        client.landed = num_blocks
        self.scheduler.land(request.request_id, num_blocks)

    def _onboard(self, client: Client, reserved: Reserved, num_blocks: int) -> None:
        """Read from below what is still there, without a hole."""
        for index in range(client.landed, num_blocks):
            cells = self.below.get(reserved.digests[index])
            if cells is None:
                break
            self.runner.write(reserved.block_ids[index], cells, reserved.digests[index])
            client.landed = index + 1
        self.scheduler.land(client.request.request_id, client.landed)

    def copy_below(self, run: OffloadRun) -> None:
        """Copy what was offered, as far as the blocks still hold it."""
        self.runs.remove(run)
        for digest, block_id in zip(run.digests, run.block_ids, strict=True):
            block = self.runner.blocks[block_id]
            if block.digest == digest:
                self.below[digest] = list(block.cells)
                self.lower.apply([TierChange(KvEventKind.STORED, Tier.G2, digest[:8])])
        self.scheduler.offloaded(run.run_id)

    def evict_below(self, digest: BlockDigest) -> None:
        del self.below[digest]
        self.lower.apply([TierChange(KvEventKind.REMOVED, Tier.G2, digest[:8])])

    def finish_remote(self, client: Client, quarantined: list[int]) -> None:
        client.is_fetching = False
        self.quarantined += quarantined
        self.scheduler.finish_remote(client.request.request_id, client.landed, quarantined)

    def unquarantine(self) -> None:
        self.scheduler.unquarantine(self.quarantined)
        self.quarantined.clear()

    def release(self, client: Client, up_to_block: int | None) -> None:
        self.scheduler.release(client.request.request_id, up_to_block)
        if up_to_block is None:
            self._forget_staged(client)
        client.staged = {
            index: b for index, b in client.staged.items() if up_to_block is not None and index >= up_to_block
        }

    def _forget_staged(self, client: Client) -> None:
        client.is_released = True
        client.staged.clear()

    def late_write(self) -> None:
        """A transport that can't be stopped writes into blocks that were given up."""
        for block_id in self.quarantined:
            self.runner.write(block_id, [12345] * 4, b"late")

    # --- the engine

    def step(self, *, raises: bool = False) -> bool:
        """One turn of an engine's loop; whether there was something to compute."""
        self.late_write()
        plan = self.scheduler.schedule()
        self.runner.open_blocks(self.scheduler.take_opened())
        self.listen()
        if plan is not None:
            self.steps += 1
            planned = [piece.sequence.request for piece in plan.slices()[: len(plan.decodes)]]
            ranks = [(-request.priority, int(request.request_id[1:])) for request in planned]
            assert ranks == sorted(ranks)
            assert len(plan.slices()) <= self.limits.max_num_seqs
            assert sum(piece.count for piece in plan.slices()) <= self.limits.max_num_batched_tokens
            assert plan.prefill_tokens + len(plan.decodes) == sum(piece.count for piece in plan.slices())
            request_ids = [piece.sequence.request.request_id for piece in plan.slices()]
            sampled = self.runner.execute(plan)
            if raises or self.poison.intersection(request_ids):
                # Everything was written, but nobody learns of it.
                self.scheduler.fail(plan, "step failed: on purpose")
                if len(request_ids) == 1:
                    self._forget_staged(self.clients[request_ids[0]])
            else:
                self.scheduler.complete(plan, sampled)
            self.listen()
        self.pool.check()
        self.check_staged()
        return plan is not None

    def listen(self) -> None:
        """Take the news and check all of it."""
        load = self.scheduler.load(StepFit())
        output = self.scheduler.take(load)
        for request_id in self.scheduler.take_left():
            self.runner.forget(request_id)
        self.log.append(output)
        for event in output.kv_events:
            self.last_seq += 1
            assert event.seq == self.last_seq
            for digest in event.digests:
                if event.kind is KvEventKind.STORED:
                    assert digest not in self.cached
                    self.cached[digest] = None
                else:
                    del self.cached[digest]
        for reserved in output.reserved:
            client = self.clients[reserved.request_id]
            client.reserved, client.landed = reserved, 0
            client.is_fetching = bool(reserved.block_ids)
            whole = (client.request.prompt_tokens - 1) // 4
            if reserved.is_onboarding:
                whole = reserved.first_block + len(reserved.block_ids)
                assert all(self.lower.holds(digest) for digest in reserved.digests)
            assert reserved.first_block + len(reserved.block_ids) == whole
            digests = self.hasher.extend(client.request.root, client.request.token_ids)
            assert all(not self.runner.blocks[block_id].digest for block_id in reserved.block_ids), "not opened"
            assert list(reserved.digests) == digests[reserved.first_block : whole]
        if output.offload is not None:
            self._take_offload(output.offload)
        for staged in output.staged:
            self._take_staged(staged)
        for tokens in output.tokens:
            self._take_tokens(tokens)
        held = sum(len(client.staged) for client in self.clients.values())
        assert load.staged_blocks == held, "staged blocks are miscounted"
        assert load.quarantined_blocks == len(self.quarantined)

    def _take_offload(self, news: OffloadNews) -> None:
        assert self.timing is not None
        flying = [digest for run in self.runs for digest in run.digests]
        for run in news.runs:
            assert all(digest in self.cached and digest not in self.below for digest in run.digests)
            flying += run.digests
        assert len(flying) == len(set(flying)), "a block was offered twice at a time"
        assert len(flying) <= self.timing.max_in_flight_blocks
        self.runs += news.runs

    def _take_staged(self, staged: Staged) -> None:
        client = self.clients[staged.request_id]
        assert not client.has_last, "something was announced after the last"
        if client.is_released:
            # It was on its way already: an empty one, or all of a prompt that needed no step.
            assert not staged.block_ids or client.request.cached_only
            return
        whole = (client.request.prompt_tokens - 1) // 4
        for offset, block_id in enumerate(staged.block_ids):
            index = staged.first_block + offset
            assert client.request.first_block <= index < whole
            assert index not in client.staged, "a block was announced twice"
            client.staged[index] = block_id
        client.has_last = staged.is_last

    def _take_tokens(self, output: TokenOutput) -> None:
        client = self.clients[output.request_id]
        assert client.end is None, "a request was answered after its end"
        assert output.output_index == len(client.tokens), "a token was repeated or left out"
        client.tokens += output.token_ids
        if output.finish_reason is not None:
            client.end = output

    def check_staged(self) -> None:
        for client in self.clients.values():
            for index, block_id in client.staged.items():
                request = client.request
                assert self.runner.holds(block_id, request.root, list(request.token_ids), index), "staged KV changed"

    # --- the end

    def settle(self) -> None:
        """Let every transport and reader end, compute all that is left, and check that nothing stays behind."""
        for _ in range(10_000):
            is_busy = self.step()
            self.unquarantine()
            for run in self.runs[:]:
                self.copy_below(run)
            for client in self.clients.values():
                if client.is_fetching:
                    self.finish_remote(client, [])
                if client.has_last and not client.is_released:
                    self.release(client, None)
            if not is_busy and not self.scheduler.has_work:
                break
        self.listen()
        while self.runs:
            self.copy_below(self.runs[0])
            self.listen()
        load = self.scheduler.load(StepFit())
        assert (load.running_seqs, load.waiting_seqs, load.waiting_prefill_tokens) == (0, 0, 0)
        assert (load.staged_blocks, load.quarantined_blocks) == (0, 0)
        assert load.free_blocks == load.total_blocks, "blocks leaked"
        assert self.pool.cached_blocks == len(self.cached)
        self.pool.check()
        for client in self.clients.values():
            self._check_answer(client)
        assert sorted(self.runner.forgotten) == sorted(
            request_id for request_id, client in self.clients.items() if not self._was_refused(client)
        )

    def _was_refused(self, client: Client) -> bool:
        return client.end is not None and client.end.error != "" and not client.end.error.startswith("step failed")

    def _check_answer(self, client: Client) -> None:
        if client.request.work is Work.PREFILL:
            assert client.is_released or self._was_refused(client)
            return
        assert client.end is not None, f"{client.request.request_id} was never answered"
        if client.end.finish_reason is FinishReason.ERROR:
            return
        made = len(client.tokens) - (len(client.request.token_ids) - client.request.prompt_tokens)
        assert client.request.request_id not in self.poison or made == 0
        tokens, reason = expected_answer(client.request, self.limits, self.pool_tokens)
        if client.end.finish_reason is FinishReason.CANCELLED:
            assert client.is_aborted
            assert client.tokens == tokens[: len(client.tokens)]
        else:
            assert (client.tokens, client.end.finish_reason) == (tokens, reason)
