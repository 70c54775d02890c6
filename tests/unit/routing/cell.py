"""Workers and queries for routing tests, with round numbers: 1,000 tokens a second, steps of 10 ms, 1 GB/s."""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from armature.routing.account import Account
from armature.routing.decision import Placed, Query, Rejected
from armature.routing.hints import NO_HINTS, Hints
from armature.routing.policy import Assumed, Disaggregation, Policy
from armature.routing.router import RoutingCore
from armature.routing.worker import Load, Role, Speeds, Worker
from armature.runtime.policies import load_policy

BLOCK_SIZE = 10
ASSUMED = Assumed(prefill_tokens_per_s=1000.0, decode_step_s=0.01, transfer_bytes_per_s=1e9)
POLICY = replace(load_policy("seconds"), assume=ASSUMED)


def worker(name: str, role: Role | None = None, **changes: object) -> Worker:
    """`p…` is a prefill worker, `a…` aggregated, all others decode. Reading a block takes 1 ms."""
    role = role or {"p": Role.PREFILL, "a": Role.AGGREGATED}.get(name[0], Role.DECODE)
    facts: dict[str, object] = {
        "worker_id": name, "role": role, "model": "m", "block_size": BLOCK_SIZE, "block_bytes": 1_000_000,
        "num_blocks": 1000, "max_num_seqs": 32, "max_num_batched_tokens": 500, "fingerprint": b"same",
    }  # fmt: skip
    return Worker(**(facts | changes))  # type: ignore[arg-type]


def cell(*names: str | Worker, mode: Disaggregation = Disaggregation.AUTO, policy: Policy = POLICY) -> RoutingCore:
    core = RoutingCore(replace(policy, disaggregation=mode), random.Random(0))
    for name in names:
        core.put_worker(worker(name) if isinstance(name, str) else name)
    return core


def account(core: RoutingCore, worker_id: str) -> Account:
    return core._accounts[worker_id]


def load(**changes: Any) -> Load:
    """A report; an empty pool unless told otherwise. Speeds are named like the other fields."""
    speeds = Speeds(**{name: changes.pop(name) for name in Speeds._fields if name in changes})
    return Load(**({"free_blocks": 1000, "speeds": speeds} | changes))  # type: ignore[arg-type]


def prompt(tokens: int, seed: int = 0) -> Sequence[int]:
    """Hashes of a prompt's whole blocks; equal seeds share their prefix."""
    return [seed * 1_000_000 + block for block in range(tokens // BLOCK_SIZE)]


def query(
    request_id: str = "r", tokens: int = 500, *, seed: int = 0, hashes: Sequence[int] | None = None,
    excluded: Collection[str] = (), owner: str = "gateway", model: str = "m", session_id: str = "",
    hints: Hints = NO_HINTS, tenant: str = "",
) -> Query:  # fmt: skip
    hashes = prompt(tokens, seed) if hashes is None else hashes
    return Query(request_id, model, tokens, hashes, excluded, owner, session_id=session_id, hints=hints, tenant=tenant)


def placed(outcome: Placed | Rejected) -> tuple[str, str]:
    """Decode and prefill worker of a placement."""
    assert isinstance(outcome, Placed), outcome
    return outcome.chosen.decode_id, outcome.chosen.prefill_id
