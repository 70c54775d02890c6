"""All that a decision is taken on: immutable, so that it can be explained and judged again later."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from armature.routing.columns import Flags, Floats, Roster
from armature.routing.decision import Query


class Rng(Protocol):
    """A seeded source of numbers; `random.Random` is one."""

    def random(self) -> float:
        """At least 0 and below 1."""
        ...


class Session(NamedTuple):
    """Where the last turn of a conversation went."""

    worker_id: str
    at_s: float


class Kept(NamedTuple):
    """What one kv-offload keeps of a prompt, for workers of other nodes."""

    store_id: str
    readers: Flags
    """By column, whether the worker may read from it: those whose blocks are like its own, but for its own node's, who
    onboard instead."""
    depths: Sequence[float]
    """Blocks from the prompt's first that are in its host memory, without a hole; likewise down to further tiers."""
    lifts: Sequence[tuple[float, float]]
    """What a block of each of these tiers takes at least, and what reading from there costs besides, as far as the
    workers of its node have measured it."""


class Snapshot(NamedTuple):
    """A query, and the cell as it was."""

    query: Query
    now_s: float
    roster: Roster
    state: Floats
    """A copy of the table: rows as `columns.py` names them, a column for each worker of the roster."""
    queue_s: Floats
    """What each worker computes before this prompt, were it placed there."""
    depths: Floats
    """Blocks of the prompt that each worker is believed to hold on its device, from the first."""
    overlap: Floats
    """Those of them that are of use: the last token of a prompt is always computed, so its block never is."""
    lower_depths: Sequence[Floats | None]
    """Blocks held on the device or in host memory, without a hole; None: nobody has more than above. Likewise down to
    disk, and down to the remote store."""
    active_depths: Floats | None
    """Blocks of the prompt that are in use by requests in flight; None: that is not counted."""
    session: Session | None
    lots: tuple[float, float]
    """Two random numbers from 0 to 1, for policies that draw lots."""
    indexed: Floats
    """Those of `depths` that the index says; the others were placed a moment ago."""
    needed_blocks: Floats
    """Blocks for the prompt and its first token, by worker."""
    kept: Sequence[Kept] = ()
    """What kv-offloads keep of the prompt: those with the longest runs."""

    @property
    def source_ids(self) -> Sequence[str]:
        """Whom blocks can be read from: the workers, and behind them those of `kept`."""
        return (*self.roster.worker_ids, *[kept.store_id for kept in self.kept])
