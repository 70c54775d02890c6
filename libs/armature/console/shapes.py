"""What the console is told: the cell as it is now, and what routers have decided. All of it is for JSON.

Of requests there are ids, lengths and times, never a text, a token, a hash or a key.
"""

from typing import Any, Literal

import msgspec

Tier = Literal["G1", "G2", "G3", "G4"]
MAX_CANDIDATES = 64
"""Of one decision."""


class Shape(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """All there is."""


class Member(Shape):
    """One process of the cell."""

    address: str
    node: str
    state: Literal["ready", "draining"]
    problem: str
    """Why it tells nothing now; empty: it does. What else is told is then the last that was heard."""


class Gateway(Member):
    is_this: bool
    """It tells this."""


class Worker(Member):
    """Counts of blocks are of its device; rates are of the last seconds, null until there are two readings."""

    role: Literal["aggregated", "prefill", "decode", "unspecified"]
    model: str
    engine: str
    running: int
    waiting: int
    most_running: int
    waiting_prefill_tokens: int
    total_blocks: int
    used_blocks: int
    cached_blocks: int
    """That its prefix cache can find, in use or not."""
    staged_blocks: int
    """Held for readers."""
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    cached_share: float | None
    """Of the prompt tokens that it needed lately, those that its prefix cache had; null: it needed none."""
    step_s: float
    """A step that only decodes, as measured; 0 until then."""
    preemptions: int
    read_bytes_per_s: float | None
    """KV blocks read from other workers."""
    offloaded_bytes_per_s: float | None
    onboarded_bytes_per_s: float | None
    index_trust: str
    """How far kv-index trusts what it knows of it: `exact`, `repairing`, `stale`, `assumed`; empty: unknown."""
    indexed_blocks: int
    believed_share: float | None
    """Of its predicted overlap, what routers believe that it holds: the least that one of them believes."""


class Router(Member):
    policy: str
    requests_in_flight: int
    queued_requests: int
    queued_work_s: float
    index_blocks: int


class Index(Member):
    indexed_blocks: int
    size_bytes: int
    sources: dict[str, int]
    """Workers and kv-offloads by trust."""


class OffloadTier(Shape):
    """Counts are since the start."""

    capacity_blocks: int
    used_blocks: int
    pinned_blocks: int
    stored_blocks: int
    hit_blocks: int
    evicted_blocks: int
    refused_blocks: int
    read_bytes_per_s: float
    """As measured; 0 until then."""
    write_bytes_per_s: float


class Offload(Member):
    block_bytes: int
    leases: int
    tiers: dict[Tier, OffloadTier]
    index_trust: str


class Workers(Shape):
    """How many of each role."""

    aggregated: int
    prefill: int
    decode: int


class PlanEntry(Shape):
    """What was decided or done, and why."""

    at: float
    """Unix time."""
    text: str
    done: list[str]
    """What was carried out of it."""


class Planner(Member):
    leader: str
    """Who carries plans out; empty: nobody at the moment."""
    connector: str
    policy: str
    model: str
    is_paused: bool
    ttft_target_s: float
    itl_target_s: float
    target_quantile: float
    ready: Workers
    starting: Workers
    wanted: Workers
    reason: str
    """Of the last plan, in a word."""
    text: str
    """The same for people; empty: there was none yet."""
    obstacles: list[str]
    """Why no plan is made or carried out."""
    log: list[PlanEntry]
    """Oldest first."""


class Transfer(Shape):
    """KV blocks that workers read from each other, over one transport."""

    bytes_per_s: float | None
    size_bytes: int
    """Since the workers' start."""
    prompts: int
    mean_s: float
    """In which one prompt's blocks were being read; 0: none was."""


class TierSum(Shape):
    """All blocks of a tier, over the cell."""

    used_blocks: int
    capacity_blocks: int
    size_bytes: int
    """Of the used ones."""


class Model(Shape):
    context_length: int
    block_size: int
    workers: int


class Point(Shape):
    """Requests at this gateway at one moment: rates over some seconds, quantiles over half a minute."""

    at: float
    """Unix time."""
    inflight_requests: int
    requests_per_s: float
    """That have ended, whatever way."""
    refused_per_s: float
    """For now or for good: 4xx, but clients that left."""
    failed_per_s: float
    """5xx."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    ttft_s_p50: float | None
    ttft_s_p95: float | None
    itl_s_p50: float | None
    itl_s_p95: float | None


class Cell(Shape):
    """The cell as it is now; members by id."""

    now: float
    """Unix time."""
    version: str
    namespace: str
    is_stale: bool
    """Who is there is what was last known: etcd can't be heard."""
    models: dict[str, Model]
    gateways: dict[str, Gateway]
    routers: dict[str, Router]
    indexes: dict[str, Index]
    workers: dict[str, Worker]
    offloads: dict[str, Offload]
    planners: dict[str, Planner]
    tiers: dict[Tier, TierSum]
    transfers: dict[str, Transfer]
    """By transport."""
    cached_share: float | None
    """Of the prompt tokens that all workers needed lately, those that their prefix caches had; null: none were."""


class CellNow(Shape, tag="cell", tag_field="type"):
    """All of it; the first event of a stream, and again whenever its reader was too slow for changes."""

    cell: Cell
    traffic: list[Point]
    """The last minutes, oldest first."""


class CellChange(Shape, tag="change", tag_field="type"):
    """What has become different."""

    patch: dict[str, Any]
    """A JSON merge patch (RFC 7396) to `cell`."""
    traffic: list[Point]
    """What is to be added."""


class Candidate(Shape):
    """One way to serve a request; its terms, in the policy's unit, add up to its cost."""

    decode_worker: str
    prefill_worker: str
    pull_worker: str
    cost: float
    terms: dict[str, float]
    predicted_ttft_s: float
    overlap_tokens: int
    onboard_tokens: dict[Tier, int]
    is_chosen: bool


class Counterfactual(Shape):
    """What another policy would have done."""

    policy: str
    decode_worker: str
    prefill_worker: str
    predicted_ttft_s: float
    is_same: bool


class Decision(Shape):
    request_id: str
    router: str
    model: str
    tenant: str
    prompt_tokens: int
    decided_at: float
    """Unix time."""
    policy: str
    unit: str
    reason: str
    is_rejected: bool
    candidates: list[Candidate]
    """Best first."""
    num_candidates: int
    """How many there were."""
    counterfactuals: list[Counterfactual]
    ttft_s: float | None
    """What came of it; null: nobody has told yet."""
    cached_tokens: int | None


class Decisions(Shape):
    data: list[Decision]
    """Latest first."""
    problems: dict[str, str]
    """Routers that did not answer, and why."""
