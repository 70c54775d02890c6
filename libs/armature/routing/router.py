"""Decides where requests go: the object that the router serves, the gateway falls back on and a simulator drives.

It holds who is there, what they have to do and what they hold, and answers one question. It opens nothing and reads
no clock. Invariant: the ledger has one entry for every placement that has not ended.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter

from armature.index.prefix_index import PrefixIndex
from armature.routing.costs import CostModel, Prefiller, frontier
from armature.routing.decision import Candidate, Placed, Query, Rejected, RejectionCode
from armature.routing.expected import ExpectedBlocks
from armature.routing.ledger import Account, Ledger, Share
from armature.routing.policy import Disaggregation, Policy
from armature.routing.worker import Load, Role, Speeds, Worker

# Costs that differ by less are equal, and equals are spread. No more, since the terms that are the same for all
# candidates are most of a high cost.
_TIE_RATIO = 1.01
_TIE_S = 0.001
_RETRY_AFTER_S = (1.0, 30.0)


_Usable = tuple[Account, int]
"""A worker and how many blocks of the prompt it holds."""


class _Pool:
    """Workers of one model, each list in order of ids."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self.all = sorted(accounts, key=lambda account: account.worker_id)
        self.decoders: list[Account] = []
        self.prefillers: dict[bytes, list[Account]] = {}
        for account in self.all:
            if account.worker.role is Role.PREFILL:
                self.prefillers.setdefault(account.worker.fingerprint, []).append(account)
            else:
                self.decoders.append(account)


class RoutingCore:
    """Places requests on workers.

    `index` is who holds which block; replace it whenever a better copy is at hand. With an empty one, placement goes
    by load alone.
    """

    def __init__(self, policy: Policy | None = None, index: PrefixIndex | None = None) -> None:
        self.policy = policy or Policy()
        self.index = index or PrefixIndex()
        self._costs = CostModel(self.policy)
        self._accounts: dict[str, Account] = {}
        self._pools: dict[str, _Pool] = {}
        self._ledger = Ledger()
        self._expected = ExpectedBlocks(self.policy.expected_ttl_s)

    @property
    def requests_in_flight(self) -> int:
        return len(self._ledger)

    @property
    def workers(self) -> list[Worker]:
        return [account.worker for account in self._accounts.values()]

    def put_worker(self, worker: Worker) -> None:
        """A worker has come, or changed; what is known of its load stays."""
        account = self._accounts.get(worker.worker_id)
        if account is None:
            self._accounts[worker.worker_id] = Account(worker, self.policy.speeds)
        else:
            account.describe(worker)
        self._sort_pools()

    def remove_worker(self, worker_id: str) -> None:
        """A worker is gone; unknown ones are ignored."""
        if self._accounts.pop(worker_id, None) is not None:
            self._expected.forget()
            self._sort_pools()

    def report(self, worker_id: str, load: Load, now_s: float) -> None:
        """A worker has told its load; unknown ones are ignored."""
        account = self._accounts.get(worker_id)
        if account is None:
            return
        unknown = account.measured.count(0.0)
        account.report(load, now_s, self.policy.settle_s)
        if account.measured.count(0.0) < unknown:
            self._share_speeds()

    def first_token(self, owner: str, request_id: str) -> None:
        """A placed request has its first token. Unknown ones are ignored."""
        self._ledger.first_token((owner, request_id))

    def finish(self, owner: str, request_id: str) -> None:
        """A placed request has ended, whatever way. Unknown ones are ignored."""
        self._ledger.finish((owner, request_id))

    def forget(self, owner: str) -> int:
        """An owner is gone, and with it its requests; how many there were."""
        return self._ledger.forget(owner)

    def place(self, query: Query, now_s: float) -> Placed | Rejected:
        """Choose the workers for a request and enter it into the ledger until it is finished."""
        pool = self._pools.get(query.model)
        if pool is None or not pool.decoders:
            return Rejected(RejectionCode.NO_WORKERS, f"no decode worker serves model {query.model!r}")
        depths = self.index.match(query.hashes)
        self._expected.deepen(depths, query.hashes, now_s)
        usable = self._usable(pool.decoders, query, depths)
        if not usable:
            return self._reject(pool, query, now_s)
        candidates = self._candidates(pool, usable, query, depths, now_s)
        equals = _equals(candidates)
        chosen = equals[0] if len(equals) == 1 else min(equals, key=self._tie_key)
        self._enter(query, chosen, now_s)
        overlap_tokens = chosen.overlap_blocks * self._accounts[chosen.decode_id].block_size
        reason = f"{_describe(chosen)}; {overlap_tokens} of {query.prompt_tokens} tokens cached"
        return Placed(chosen, overlap_tokens, reason + _comparison(equals, candidates), tuple(candidates))

    def _candidates(
        self, pool: _Pool, usable: list[_Usable], query: Query, depths: dict[str, int], now_s: float
    ) -> list[Candidate]:
        mode, costs, tokens = self.policy.disaggregation, self._costs, query.prompt_tokens
        helpers: dict[bytes, list[Prefiller]] = {}
        if mode is not Disaggregation.NEVER:
            for fingerprint, accounts in pool.prefillers.items():
                able = self._usable(accounts, query, depths)
                helpers[fingerprint] = frontier(costs.prefiller(*one, tokens, now_s) for one in able)
        found: list[Candidate] = []
        for account, overlap in usable:
            remote = None
            if helpers and account.worker.role is Role.DECODE:
                prefillers = helpers.get(account.worker.fingerprint, ())
                remote = costs.remote(account, overlap, tokens, prefillers, now_s)
                if remote is not None:
                    found.append(remote)
            if remote is None or mode is not Disaggregation.ALWAYS:
                found.append(costs.local(account, overlap, tokens, now_s))
        return found

    def _usable(self, accounts: Iterable[Account], query: Query, depths: dict[str, int]) -> list[_Usable]:
        """Workers that can take a request, each with the whole blocks that it holds of it and can use.

        The last token of a prompt is always computed, so a block that ends with it is of no use.
        """
        tokens, excluded, is_full = query.prompt_tokens, query.excluded, self._costs.is_full
        found: list[_Usable] = []
        for account in accounts:
            if account.worker.is_draining or (excluded and account.worker_id in excluded):
                continue
            block_size = account.block_size
            overlap = depths.get(account.worker_id, 0)
            if overlap:
                overlap = min(overlap, (tokens - 1) // block_size)
            blocks = tokens // block_size + 1
            if blocks <= account.num_blocks and not is_full(account, blocks - overlap):
                found.append((account, overlap))
        return found

    def _tie_key(self, candidate: Candidate) -> tuple[int, bool, int, float, str, str]:
        """Among equals: the least busy, then local, the most overlap, placed on longest ago, the first by id."""
        decode = self._accounts[candidate.decode_id]
        is_remote = candidate.prefill_id != ""
        busy = decode.requests + (self._accounts[candidate.prefill_id].requests if is_remote else 0)
        return (busy, is_remote, -candidate.overlap_blocks, decode.last_placed_s, *candidate[:2])

    def _enter(self, query: Query, chosen: Candidate, now_s: float) -> None:
        decode = self._accounts[chosen.decode_id]
        total = query.prompt_tokens // decode.block_size + 1
        own_s = 0.0 if chosen.prefill_id else chosen.prefill_s
        own, other = (decode, Share(now_s, own_s, total - chosen.overlap_blocks)), None
        computes, overlap = chosen.decode_id, chosen.overlap_blocks
        if chosen.prefill_id:
            computes, overlap = chosen.prefill_id, chosen.prefill_overlap_blocks
            prefill = self._accounts[computes]
            missing = (query.prompt_tokens - 1) // prefill.block_size - overlap
            other = (prefill, Share(now_s, chosen.prefill_s, missing))
        self._ledger.open((query.owner, query.request_id), own, other)
        if overlap < len(query.hashes):
            # Siblings that queue behind the prompt will find its blocks. A decode worker that only reads them has no
            # such queue: there they count when they have landed and events say so.
            self._expected.add(computes, query.hashes, now_s)

    def _reject(self, pool: _Pool, query: Query, now_s: float) -> Rejected:
        blocks = [query.prompt_tokens // account.worker.block_size + 1 for account in pool.decoders]
        fitting = [a for a, needed in zip(pool.decoders, blocks, strict=True) if needed <= a.worker.num_blocks]
        if not fitting:
            most = max(account.worker.num_blocks for account in pool.decoders)
            return Rejected(
                RejectionCode.NO_WORKERS, f"a prompt of {query.prompt_tokens} tokens needs {min(blocks)} blocks; "
                f"the largest pool of model {query.model!r} has {most}",
            )  # fmt: skip
        draining = sum(account.worker.is_draining for account in fitting)
        excluded = sum(a.worker.worker_id in query.excluded and not a.worker.is_draining for a in fitting)
        full = [a for a in fitting if not a.worker.is_draining and a.worker.worker_id not in query.excluded]
        waits_s = [
            max(account.busy_until_s - now_s, 0.0) + self._costs.room_s(account, min(blocks)) for account in full
        ]
        low_s, high_s = _RETRY_AFTER_S
        reason = f"of {len(pool.decoders)} decode workers {len(full)} full, {draining} draining, {excluded} excluded"
        return Rejected(RejectionCode.OVERLOADED, reason, min(max(min(waits_s, default=low_s), low_s), high_s))

    def _sort_pools(self) -> None:
        models = dict.fromkeys(account.worker.model for account in self._accounts.values())
        self._pools = {
            model: _Pool(account for account in self._accounts.values() if account.worker.model == model)
            for model in models
        }
        self._share_speeds()

    def _share_speeds(self) -> None:
        """Assume of a worker what it has not measured as the best of its model have: so a new one is soon tried."""
        for pool in self._pools.values():
            measured = [account.measured for account in pool.all]
            prefill, step, transfer = ([value for value in values if value] for values in zip(*measured, strict=True))
            guess = self.policy.speeds
            best = Speeds(
                max(prefill, default=guess.prefill_tokens_per_s),
                min(step, default=guess.decode_step_s),
                max(transfer, default=guess.transfer_bytes_per_s),
            )
            for account in pool.all:
                account.assume(best)


def _equals(candidates: Sequence[Candidate]) -> list[Candidate]:
    best_s = min([candidate.cost_s for candidate in candidates])
    bound_s = max(best_s * _TIE_RATIO, best_s + _TIE_S)
    return [candidate for candidate in candidates if candidate.cost_s <= bound_s]


def _comparison(equals: Sequence[Candidate], candidates: Sequence[Candidate]) -> str:
    """How the chosen way stands among the others."""
    text = f"; best of {len(equals)} about equal ways" if len(equals) > 1 else ""
    bound_s = max(equals, key=_cost).cost_s
    worse = [candidate for candidate in candidates if candidate.cost_s > bound_s]
    if not worse:
        return f"{text}; no other way" if len(candidates) == 1 else text
    return f"{text}; next of {len(worse)}: {_describe(min(worse, key=_cost))}"


_cost = attrgetter("cost_s")


def _describe(way: Candidate) -> str:
    name = f"{way.decode_id} with prefill on {way.prefill_id}" if way.prefill_id else f"{way.decode_id} alone"
    terms = f"queue {way.queue_s:.3f} + prefill {way.prefill_s:.3f}"
    if way.room_s:
        terms += f" + room {way.room_s:.3f}"
    if way.prefill_id:
        terms += f" + transfer {way.transfer_s:.3f}"
    return f"{name} costs {way.cost_s:.3f} s ({terms} + step {way.step_s:.3f} + harm {way.harm_s:.3f})"
