"""One copy of a model on its GPUs, and what it is asked to serve."""

from dataclasses import dataclass, field
from typing import NamedTuple

from armature.performance.step import PerformanceModel
from armature.planning.fleet import WorkerKind
from armature.routing.checks import check_numbers


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Split:
    """How one copy is laid over GPUs.

    Raises:
        ValueError: a number is below 1, or experts are split over GPUs that are not there.
    """

    tp: int = 1
    """GPUs that share every layer's attention."""
    pp: int = 1
    """Stages that the layers are cut into."""
    dp: int = 1
    """Groups that each attend to requests of their own and share the experts."""
    ep: int = 1
    """Parts that the experts are dealt out to; what `tp * dp` leaves of it splits each of them."""

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "ep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.tp * self.dp % self.ep:
            raise ValueError(f"ep is {self.ep}; it must divide tp * dp, which is {self.tp * self.dp}")

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def lanes(self) -> int:
        """Batches that are computed at the same time: one a group and stage."""
        return self.pp * self.dp

    def __str__(self) -> str:
        sizes = {"pp": self.pp, "dp": self.dp, "ep": self.ep}
        return " ".join([f"tp{self.tp}", *(f"{name}{size}" for name, size in sizes.items() if size > 1)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A copy of a model. What holds batches is a lane: it steps while the others do, as busy as they are.

    Raises:
        ValueError: a number is out of its range.
    """

    gpu: str
    split: Split
    performance: PerformanceModel = field(repr=False)
    """Of a lane."""
    kv_tokens: int
    """Tokens whose KV fits in a lane."""
    token_bytes: int = 0
    """KV of one token, as it moves between replicas."""
    max_num_seqs: int = 256
    """Requests in one step of a lane."""
    max_num_batched_tokens: int = 8192
    """Likewise tokens."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("kv_tokens", "max_num_seqs", "max_num_batched_tokens"))

    def lane(self, handoff_s: float = 0.0) -> WorkerKind:
        """A lane as a worker, for queueing."""
        return WorkerKind(
            performance=self.performance,
            kv_tokens=self.kv_tokens,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            gpus=self.split.tp,
            handoff_s=handoff_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a usual request is.

    Raises:
        ValueError: a number is out of its range.
    """

    isl: int
    """Tokens of a prompt."""
    osl: int
    """Tokens of an answer."""
    cached_tokens: int = 0
    """Of the prompt, that need not be computed."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("isl",))
        if self.osl < 2:
            raise ValueError(f"osl is {self.osl}; it must be at least 2: the first token is the prompt's")
        if self.cached_tokens >= self.isl:
            raise ValueError(f"cached_tokens is {self.cached_tokens}; it must be below isl, {self.isl}")

    @property
    def new_tokens(self) -> int:
        return self.isl - self.cached_tokens

    @property
    def context_tokens(self) -> float:
        """Of an answer half done."""
        return self.isl + self.osl / 2


class Pool(NamedTuple):
    """Equal replicas with one role."""

    role: str
    """`aggregated`, `prefill` or `decode`."""
    replica: Replica
    num_replicas: int
    batch: int
    """Answers that grow in a lane, or prompts in one step of it."""
    requests_per_s: float
    """That one replica carries."""
    chunk_tokens: int = 0
    """Of prompts, beside answers in one step."""

    @property
    def gpus(self) -> int:
        return self.num_replicas * self.replica.split.gpus

    def __str__(self) -> str:
        return f"{self.num_replicas} x {self.replica.split}"


class Point(NamedTuple):
    """A deployment that is always busy, and what users get from it."""

    mode: str
    """`aggregated` or `disaggregated`."""
    gpu: str
    pools: tuple[Pool, ...]
    ttft_s: float
    """Without waiting."""
    itl_s: float
    requests_per_s: float
    tokens_per_s_per_gpu: float
    """Of answers."""

    @property
    def gpus(self) -> int:
        return sum([pool.gpus for pool in self.pools])

    @property
    def tokens_per_s_per_user(self) -> float:
        return 1 / self.itl_s

    def __str__(self) -> str:
        return " + ".join([f"{pool} {pool.role}" for pool in self.pools])


def point_of(mode: str, pools: tuple[Pool, ...], ttft_s: float, itl_s: float, work: Workload) -> Point:
    """The pools together: they carry what the weaker one does."""
    requests_per_s = min([pool.num_replicas * pool.requests_per_s for pool in pools])
    per_gpu = requests_per_s * work.osl / sum([pool.gpus for pool in pools])
    return Point(mode, pools[0].replica.gpu, pools, ttft_s, itl_s, requests_per_s, per_gpu)
