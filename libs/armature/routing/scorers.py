"""What a policy adds up to compare ways: each term small, and all of a policy in one unit.

Terms in seconds are either the request's own time to first token, phase by phase, or what the others lose by it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from armature.routing import columns as at
from armature.routing.checks import check_numbers
from armature.routing.columns import Floats
from armature.routing.forecast import Ways
from armature.routing.snapshot import Snapshot

Unit = Literal["s", "blocks", "requests"]


class Scorer(Protocol):
    """One term of a cost; the lower the better."""

    unit: ClassVar[Unit]
    is_own: ClassVar[bool]
    """Whether it is a part of the request's own time to first token, which its latency sensitivity weighs."""

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        """Way by way; None: nothing for any of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Phase:
    """A phase of the forecast."""

    weight: float = 1.0

    unit: ClassVar[Unit] = "s"
    is_own: ClassVar[bool] = True
    phase: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_numbers(self)

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        phase: Floats | None = getattr(ways, self.phase)
        return phase if phase is None or self.weight == 1.0 else self.weight * phase


class Queue(_Phase):
    """Behind prompts that came before."""

    phase = "queue_s"


class RoomWait(_Phase):
    """Until blocks and a place in the batch are free."""

    phase = "room_s"


class Onboard(_Phase):
    """Reading blocks from the worker's own lower tiers."""

    phase = "onboard_s"


class PeerPull(_Phase):
    """Reading a prefix from a peer, or from another node's kv-offload."""

    phase = "pull_s"


class Prefill(_Phase):
    """Computing what is neither held nor read."""

    phase = "prefill_s"


class Transfer(_Phase):
    """What reading a prefill worker's blocks adds."""

    phase = "transfer_s"


class FirstStep(_Phase):
    """The first token's step."""

    phase = "first_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """Streams that stand still while the prompt is computed on their worker.

    Those that wait before it count, since they run by the time that it is computed, and one to come, so that long
    prompts leave even an idle decode worker to its trade. Prompts computed on prefill workers stall nobody.
    """

    weight: float = 0.05
    """A second by which one stream is stalled against a second of one request's time to first token, on workers that
    do both. Raise it if inter-token latency suffers; long prompts then wait for workers with few streams."""
    decode_weight: float = 0.5
    """Likewise on workers that only decode. Raise it to have fewer prompts computed there."""
    ride_along_tokens: int = 64
    """Uncached tokens that ride along in a decode step without lengthening it. Raise it on engines with large
    batches."""

    unit: ClassVar[Unit] = "s"
    is_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self)

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        stalling = np.maximum(1.0 - self.ride_along_tokens / ways.own_tokens, 0.0)
        weight = self.weight + (self.decode_weight - self.weight) * ways.rows[at.IS_DECODE]
        return weight * stalling * ways.own_s * (ways.rows[at.STREAMS] + 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Computing by itself, since it delays whoever comes next."""

    weight: float = 0.28
    """Raise it to recompute less."""

    unit: ClassVar[Unit] = "s"
    is_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self)

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        if ways.prefill_s is None:
            return None
        if ways.prefill is None:
            return self.weight * ways.prefill_s
        # A prompt computed elsewhere leaves its tail to the worker that decodes.
        return self.weight * (ways.prefill_s + np.where(ways.prefill >= 0, ways.own_s, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowding:
    """Steps that get longer by one more stream in the batch."""

    weight: float = 0.5
    """Decode steps that each running stream loses over its life to one more stream beside it. Raise it to spread
    requests more evenly over decode workers, at the price of fewer cache hits."""
    usual_output_tokens: int = 256
    """An answer that is expected to be longer than this counts for more."""

    unit: ClassVar[Unit] = "s"
    is_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("usual_output_tokens",))

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        weight = self.weight
        expected = snapshot.query.hints.expected_output_tokens
        if expected > self.usual_output_tokens:
            weight *= expected / self.usual_output_tokens
        return weight * ways.rows[at.DECODE_STEP_S] * ways.rows[at.STREAMS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switching:
    """Leaving the worker that served the last turn of the same session, which may hold more than is known of."""

    cost_s: float = 0.05
    """Right after the last turn. Raise it where the index lags far behind."""
    half_life_s: float = 60.0
    """In which it halves. About how long blocks stay cached."""

    unit: ClassVar[Unit] = "s"
    is_own: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("half_life_s",))

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        session = snapshot.session
        if session is None or (home := snapshot.roster.slots.get(session.worker_id)) is None:
            return None
        cost_s = self.cost_s * 0.5 ** ((snapshot.now_s - session.at_s) / self.half_life_s)
        return np.where(ways.decode == home, 0.0, cost_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests of this router that have not ended on the workers of a way."""

    unit: ClassVar[Unit] = "requests"
    is_own: ClassVar[bool] = False

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        return ways.rows[at.REQUESTS]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillBlocks:
    """Prompt blocks to compute: those of prompts placed before, and of this one what is not held."""

    weight: float = 1.0

    unit: ClassVar[Unit] = "blocks"
    is_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self)

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        block_size = ways.rows[at.BLOCK_SIZE]
        uncached = np.maximum(snapshot.query.prompt_tokens - snapshot.depths[ways.decode] * block_size, 0.0)
        return self.weight * (ways.rows[at.PREFILL_TOKENS] + uncached) / block_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveBlocks:
    """Distinct blocks in use by requests in flight, this one's included.

    A decision that was made where they are not counted is judged by the blocks in use as reported.
    """

    weight: float = 1.0

    unit: ClassVar[Unit] = "blocks"
    is_own: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self)

    def score(self, snapshot: Snapshot, ways: Ways) -> Floats | None:
        rows, query = ways.rows, snapshot.query
        if snapshot.active_depths is None:
            return self.weight * (rows[at.NUM_BLOCKS] - rows[at.FREE_BLOCKS] - ways.overlap)
        tail = np.minimum(query.prompt_tokens % rows[at.BLOCK_SIZE], 1.0)
        incoming = len(query.hashes) - snapshot.active_depths[ways.decode] + tail
        return self.weight * (rows[at.ACTIVE_BLOCKS] + incoming)


SCORERS = {
    "queue": Queue,
    "room": RoomWait,
    "onboard": Onboard,
    "peer_pull": PeerPull,
    "prefill": Prefill,
    "transfer": Transfer,
    "step": FirstStep,
    "interference": Interference,
    "work": Work,
    "crowding": Crowding,
    "switching": Switching,
    "requests": Requests,
    "prefill_blocks": PrefillBlocks,
    "active_blocks": ActiveBlocks,
}
"""By the name that a policy file has for them, which is the term's name in a decision."""
