"""Decides where requests go: the object that the router serves, the gateway falls back on and a simulator drives.

It holds who is there, what they have to do and what they hold, and answers one question. It opens nothing and reads
no clock. Invariant: the ledger has one entry for every placement that has not ended.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from armature.index.descent import Ends
from armature.index.prefix_index import PrefixIndex
from armature.index.tiers import LOWER_TIERS, Tier
from armature.index.trust import Answered, Trust
from armature.routing import columns as at
from armature.routing.account import Account, Key, Pace, Share, reference_s
from armature.routing.active import ActiveBlocks
from armature.routing.columns import Floats, Roster, roster_of
from armature.routing.decision import Placed, Query, Rejected, RejectionCode
from armature.routing.expected import ExpectedBlocks
from armature.routing.filters import able
from armature.routing.judge import Judgement, judge
from armature.routing.ledger import Entry, Ledger
from armature.routing.policy import Policy
from armature.routing.seats import Seats
from armature.routing.sessions import Sessions
from armature.routing.snapshot import Kept, Rng, Snapshot
from armature.routing.stores import Stores
from armature.routing.unstarted import Unstarted
from armature.routing.worker import Load, Speeds, Worker

_NO_LOWER = (None, None, None)
_RETRY_AFTER_S = (1.0, 30.0)


class _Pool:
    """Workers of one model, and the table of what is known of them."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self.roster: Roster = roster_of([account.worker for account in accounts])
        self.accounts = sorted(accounts, key=lambda account: self.roster.slots[account.worker_id])
        self.state: Floats = np.stack([account.column for account in self.accounts], axis=1)
        for slot, account in enumerate(self.accounts):
            account.column = self.state[:, slot]
        self._seats: dict[str, Seats] = {}

    def depths(self, source: str, slots: Sequence[str], ends: Ends) -> Floats:
        """The depth by column of masks whose bits are as a source's `slots` have them."""
        seats = self._seats.get(source)
        if seats is None or seats.slots is not slots:
            seats = self._seats[source] = Seats(slots, self.roster)
        return seats.depths(ends)


class RoutingCore:
    """Places requests on workers.

    `index` is who holds which block; replace it whenever a better copy is at hand. With an empty one, placement goes
    by load alone. `trust` says how far it is believed, and learns from what requests find cached. `rng` is
    drawn from twice a decision, whatever the policy.
    """

    def __init__(self, policy: Policy, rng: Rng, index: PrefixIndex | None = None) -> None:
        self.policy = policy
        self.index = index or PrefixIndex()
        self.trust = Trust()
        self._rng = rng
        self.stores = Stores()
        """Is to be told of kv-offloads; what they keep counts for workers of other nodes only then."""
        self._accounts: dict[str, Account] = {}
        self._pools: dict[str, _Pool] = {}
        # What many joining or reporting at once would have done again and again waits for whoever asks.
        self._is_sorted = self._is_shared = True
        self._active = ActiveBlocks() if policy.counts_active_blocks else None
        self._ledger = Ledger(active=self._active)
        self._expected = ExpectedBlocks(policy.expected_ttl_s) if policy.expected_ttl_s else None
        self._sessions = Sessions()
        self._promises: dict[str, tuple[str, float]] = {}

    @property
    def requests_in_flight(self) -> int:
        return len(self._ledger)

    @property
    def unstarted(self) -> Unstarted:
        """Placed prompts that are not computed yet."""
        return self._ledger.unstarted

    @property
    def workers(self) -> list[Worker]:
        return [account.worker for account in self._accounts.values()]

    def state(self, model: str) -> Floats | None:
        """The live table of a model's workers, as `columns.py` has it; None: there are none. For reading at once."""
        pool = self._pool(model)
        return pool.state if pool else None

    def awaited_s(self, model: str) -> float | None:
        """How long the first worker takes that is started when somebody asks; None: there is one, or none will be.

        Those that drain are as good as gone.
        """
        promised = [start_up_s for served, start_up_s in self._promises.values() if served == model]
        if not promised:
            return None
        pool = self._pool(model)
        is_served = pool is not None and (pool.state[at.CAPACITY, : pool.roster.num_decoders] > 0).any()
        return None if is_served else min(promised)

    # --- what is heard

    def promise(self, planner: str, model: str, start_up_s: float) -> None:
        """A planner starts workers of a model that has none when somebody asks; no model: not any more."""
        self._promises.pop(planner, None)
        if model:
            self._promises[planner] = model, max(start_up_s, 0.0)

    def put_worker(self, worker: Worker) -> None:
        """A worker has come, or changed; what is known of its load stays."""
        account = self._accounts.get(worker.worker_id)
        if account is None:
            self._accounts[worker.worker_id] = Account(worker, Pace(self.policy.assume.speeds))
        else:
            account.describe(worker)
        self._is_sorted = False

    def remove_worker(self, worker_id: str) -> None:
        """A worker is gone; unknown ones are ignored."""
        account = self._accounts.pop(worker_id, None)
        if account is None:
            return
        account.is_gone = True
        if self._expected is not None:
            self._expected.forget()
        if self._active is not None:
            self._active.drop(worker_id)
        self._is_sorted = False

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        """A worker has told its load; unknown ones are ignored."""
        account = self._accounts.get(worker_id)
        if account is None:
            return
        unknown = account.num_unmeasured
        account.report(load, now_s, self.policy.settle_s)
        if unknown and account.num_unmeasured < unknown:
            self._is_shared = False

    def first_token(
        self, owner: str, request_id: str, cached_tokens: int | None = None, answered: Answered | None = None
    ) -> None:
        """A placed request has its first token. Unknown ones are ignored.

        `cached_tokens` of its prompt were on the worker that decodes; None: nobody has counted. `answered` is what a
        kv-offload has said to that worker; None: none was asked.
        """
        entry = self._ledger.first_token((owner, request_id))
        if entry is None:
            return
        if cached_tokens is not None:
            self.trust.observe(entry.worker_id, entry.predicted_tokens, cached_tokens)
        if answered is None:
            return
        if entry.store_id:
            # It is asked for the whole prompt, of which it has told to keep the beginning.
            expected = min(answered.asked_tokens, entry.store_tokens)
            self.trust.answered(entry.store_id, expected, answered.found_tokens)
            return
        for store_id, readers in self.index.attached.items():
            # Of its own node's a worker wants only what that has told it to keep.
            if entry.worker_id in readers:
                self.trust.answered(store_id, *answered)

    def finish(self, owner: str, request_id: str) -> None:
        """A placed request has ended, whatever way. Unknown ones are ignored."""
        self._ledger.finish((owner, request_id))

    def forget(self, owner: str) -> list[str]:
        """An owner is gone, and with it its requests; which they were."""
        return self._ledger.forget(owner)

    def distrusted_stores(self, now_s: float) -> frozenset[str]:
        """Kv-offloads whose blocks count for nothing: they have not had what they tell, or are silent for long."""
        return self.trust.distrusted(self.index.attached, now_s)

    # --- what is decided

    def place(self, query: Query, now_s: float) -> Placed | Rejected:
        """Choose the workers for a request and enter it into the ledger until it is finished."""
        snapshot = self.look(query, now_s)
        if isinstance(snapshot, Rejected):
            return snapshot
        judgement = judge(snapshot, self.policy)
        return self.refusal(snapshot) if judgement is None else self.enter(judgement)

    def look(self, query: Query, now_s: float) -> Snapshot | Rejected:
        """All that there is to know for placing a request now; refused if nobody serves it at all."""
        pool = self._pool(query.model)
        if pool is None or not pool.roster.num_decoders:
            return Rejected(RejectionCode.NO_WORKERS, f"no decode worker serves model {query.model!r}")
        state, roster = pool.state.copy(), pool.roster
        self.index.ignore(self.distrusted_stores(now_s))
        device, below = self.index.reach_masks(query.hashes)
        depths = indexed = pool.depths("index", self.index.slots, device)
        doubts = self.trust.doubts(now_s) if device else None
        relied = _discounted(indexed, doubts, roster) if doubts else indexed
        if self._expected is not None and (ends := self._expected.match(query.hashes, now_s)):
            expected = pool.depths("expected", self._expected.slots, ends)
            depths, relied = np.maximum(indexed, expected), np.maximum(relied, expected)
        overlap = np.minimum(relied, (query.prompt_tokens - 1) // state[at.BLOCK_SIZE])
        lower = self._lower_depths(pool, below, depths) if below else _NO_LOWER
        active = None
        if self._active is not None:
            active = pool.depths("active", self._active.slots, self._active.match(query.hashes))
        session, lots = self._sessions.get(query.session_id), (self._rng.random(), self._rng.random())
        queue_s = np.maximum(state[at.BUSY_UNTIL_S] - now_s, 0.0)
        if self.policy.queue.tenants and self.unstarted.has_others(query.tenant):
            queue_s = self.unstarted.queue_s(query.tenant, roster, state, queue_s)
        kept: Sequence[Kept] = ()
        if below and len(self.stores) and state[at.BLOCK_PULL_S].any():
            kept = self.stores.keeping(self.index, below, roster, state)
        needed = query.prompt_tokens // state[at.BLOCK_SIZE] + 1
        return Snapshot(
            query, now_s, roster, state, queue_s, depths, overlap, lower, active, session, lots, indexed, needed, kept
        )  # fmt: skip

    def _lower_depths(self, pool: _Pool, below: Mapping[Tier, Ends], device: Floats) -> tuple[Floats | None, ...]:
        """How far workers get with each lower tier and those above it; None where that is no further for anybody."""
        depths, best = list[Floats | None](), device
        for tier in LOWER_TIERS:
            further = below.get(tier)
            if further is not None:
                best = np.maximum(best, pool.depths("index", self.index.slots, further))
            depths.append(None if further is None else best)
        return tuple(depths)

    def enter(self, judgement: Judgement) -> Placed:
        """Carry out what was judged: enter the request into the ledger until it is finished."""
        query, chosen = judgement.snapshot.query, judgement.chosen
        entry = entry_of(judgement)
        self._open((query.owner, query.request_id), entry, query.session_id)
        block_size = self._accounts[chosen.decode_id].worker.block_size
        return Placed(judgement, chosen, chosen.overlap_blocks * block_size)

    def adopt(self, owner: str, request_id: str, entry: Entry, session_id: str = "") -> None:
        """Another router has placed a request: count it as if it had been placed here.

        It ends like any other. Ignored if it is on a worker that is unknown here.
        """
        if entry.worker_id in self._accounts and (not entry.prefill_id or entry.prefill_id in self._accounts):
            self._open((owner, request_id), entry, session_id)

    def _open(self, key: Key, entry: Entry, session_id: str) -> None:
        decode = self._accounts[entry.worker_id]
        prefill = self._accounts[entry.prefill_id] if entry.prefill_id else None
        self._ledger.open(key, entry, decode, prefill)
        now_s = entry.share.placed_s
        self._sessions.put(session_id, entry.worker_id, now_s)
        computes, share = prefill or decode, entry.prefill_share or entry.share
        if self._expected is not None and share.tokens >= computes.worker.block_size:
            # Siblings that queue behind the prompt will find its blocks. A decode worker that only reads them has no
            # such queue: there they count when they have landed and events say so.
            self._expected.add(computes.worker_id, entry.hashes, now_s)

    def refusal(self, snapshot: Snapshot) -> Rejected:
        """Why nobody can take a request, and when to try again."""
        query, roster = snapshot.query, snapshot.roster
        decoders = slice(0, roster.num_decoders)
        state, needed = snapshot.state[:, decoders], snapshot.needed_blocks[decoders]
        fits = needed <= state[at.NUM_BLOCKS]
        if not fits.any():
            return Rejected(
                RejectionCode.NO_WORKERS, f"a prompt of {query.prompt_tokens} tokens needs {needed.min():.0f} blocks; "
                f"the largest pool of model {query.model!r} has {state[at.NUM_BLOCKS].max():.0f}",
            )  # fmt: skip
        is_draining = fits & (state[at.CAPACITY] == 0)
        is_full = able(snapshot)[decoders]
        draining, full = int(is_draining.sum()), int(is_full.sum())
        excluded = int(fits.sum()) - draining - full
        low_s, high_s = _RETRY_AFTER_S
        waits_s = np.maximum(state[at.BUSY_UNTIL_S] - snapshot.now_s, 0.0) + self.policy.forecast.room_s(state, needed)
        wait_s = float(waits_s[is_full].min()) if full else low_s
        reason = f"of {roster.num_decoders} decode workers {full} full, {draining} draining, {excluded} excluded"
        return Rejected(RejectionCode.OVERLOADED, reason, min(max(wait_s, low_s), high_s))

    # --- who is there

    def _pool(self, model: str) -> _Pool | None:
        if not self._is_sorted:
            self._sort_pools()
        if not self._is_shared:
            self._share_pace()
        return self._pools.get(model)

    def _sort_pools(self) -> None:
        models = dict.fromkeys(account.worker.model for account in self._accounts.values())
        self._pools = {
            model: _Pool([account for account in self._accounts.values() if account.worker.model == model])
            for model in models
        }
        self._is_sorted, self._is_shared = True, False

    def _share_pace(self) -> None:
        """Assume of a worker what it has not measured as the best of its model have: so a new one is soon tried."""
        guess, self._is_shared = self.policy.assume.speeds, True
        for pool in self._pools.values():
            measured = [account.measured for account in pool.accounts]
            speeds = [
                [value for value in values if value] for values in zip(*(one.speeds for one in measured), strict=True)
            ]
            steps = [one.steps for one in measured if one.steps]
            best = Pace(
                Speeds(
                    max(speeds[0], default=guess.prefill_tokens_per_s),
                    min(speeds[1], default=guess.decode_step_s),
                    max(speeds[2], default=guess.transfer_bytes_per_s),
                ),
                min(steps, key=reference_s, default=None),
            )
            for account in pool.accounts:
                account.assume(best)


def _discounted(depths: Floats, doubts: Mapping[str, float], roster: Roster) -> Floats:
    """What of depths can be relied on: whole blocks of a share by worker, all of it for those not doubted."""
    factors, slots = np.ones(len(depths)), roster.slots
    for worker_id, factor in doubts.items():
        slot = slots.get(worker_id)
        if slot is not None:
            factors[slot] = factor
    return np.rint(depths * factors)


def entry_of(judgement: Judgement) -> Entry:
    """What the chosen way takes of its workers."""
    snapshot, ways, way = judgement.snapshot, judgement.ways, judgement.pick.way
    query, roster = snapshot.query, snapshot.roster
    rows = ways.rows[:, way]
    block_size, overlap = int(rows[at.BLOCK_SIZE]), int(ways.overlap[way])
    blocks = query.prompt_tokens // block_size + 1 - overlap
    # Only what the index says: siblings of a prompt that is still being computed are no fault of a source.
    predicted = min(int(snapshot.indexed[int(ways.decode[way])]), (query.prompt_tokens - 1) // block_size) * block_size
    has_tail = query.prompt_tokens % block_size > 0
    decode = int(ways.decode[way])
    helper = -1 if ways.prefill is None else int(ways.prefill[way])
    computes = decode if helper < 0 else helper
    uncached = max(query.prompt_tokens - int(snapshot.depths[computes]) * block_size, 0)
    now_s, decode_id = snapshot.now_s, roster.worker_ids[decode]
    if helper < 0:
        tokens = int(ways.tokens[way])
        store_id, store_tokens = _store_of(judgement, tokens)
        share = Share(now_s, float(ways.own_s[way]), tokens, query.prompt_tokens - tokens, blocks)
        return Entry(
            decode_id,
            share,
            hashes=query.hashes,
            uncached_tokens=uncached,
            has_tail=has_tail,
            predicted_tokens=predicted,
            tenant=query.tenant,
            store_id=store_id,
            store_tokens=store_tokens,
        )
    assert ways.prefill_s is not None and ways.prefill_overlap is not None
    held = int(ways.prefill_overlap[way])
    missing = (query.prompt_tokens - 1) // block_size - held
    remote = Share(now_s, float(ways.prefill_s[way]), missing * block_size, held * block_size, missing)
    own = Share(now_s, 0.0, 0, 0, blocks)
    return Entry(
        decode_id, own, roster.worker_ids[helper], remote, query.hashes, uncached, has_tail, predicted, query.tenant
    )


def _store_of(judgement: Judgement, tokens: int) -> tuple[str, int]:
    """The kv-offload of another node that the chosen way reads from, and what it is asked for behind the overlap."""
    snapshot, ways, way = judgement.snapshot, judgement.ways, judgement.pick.way
    source = -1 if ways.pull_slot is None else int(ways.pull_slot[way])
    if source < len(snapshot.roster.worker_ids):
        return "", 0
    held = int(ways.overlap[way] * ways.rows[at.BLOCK_SIZE, way])
    return snapshot.source_ids[source], snapshot.query.prompt_tokens - tokens - held
