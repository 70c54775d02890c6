"""What a router can be told."""

from dataclasses import dataclass
from typing import Literal

from armature.routing.policy import Disaggregation, Policy
from armature.runtime.settings import CommonSettings, option

_DEFAULT = Policy()


@dataclass(frozen=True, kw_only=True)
class RouterSettings(CommonSettings):
    """Places requests on workers by what they are predicted to cost there, in seconds."""

    disaggregation: Literal["auto", "always", "never"] = option(
        "auto", help="where prompts are computed; always or never to measure, or when predictions mislead"
    )
    interference: float = option(
        _DEFAULT.interference,
        help="weight of a second by which running streams are stalled; raise it if inter-token latency suffers "
        "from prompts computed on decode workers",
    )
    work: float = option(
        _DEFAULT.work,
        help="weight of a second of computing, which delays whoever comes next; raise it to recompute less",
    )
    crowding: float = option(
        _DEFAULT.crowding,
        help="decode steps that a running stream loses to one more beside it; raise it to spread requests more evenly "
        "at the price of cache hits",
    )
    ride_along_tokens: int = option(
        _DEFAULT.ride_along_tokens,
        help="uncached tokens that a decode step takes along for nothing; raise it on engines with large batches",
    )
    remote_overhead_s: float = option(
        _DEFAULT.remote_overhead_s,
        help="cost of having a prompt computed elsewhere, besides bytes; raise it if short prompts get slower by it",
    )
    turnover_s: float = option(
        _DEFAULT.turnover_s, help="about how long a request occupies a worker; set it to the mean request's duration"
    )
    max_waiting_seqs: int = option(
        _DEFAULT.max_waiting_seqs, help="requests that may wait on a worker; lower it to reject earlier instead"
    )
    kv_overcommit: float = option(
        _DEFAULT.kv_overcommit,
        help="share of a worker's blocks that waiting requests may lack; lower it to reject earlier instead",
    )
    expected_ttl_s: float = option(
        _DEFAULT.expected_ttl_s,
        help="how long a placed prompt counts as cached on its worker before events say so; lower it if prompts are "
        "evicted within seconds",
    )
    warm_up_s: float = option(
        2.0, help="how long to wait at the start for a copy of the index; raise it if the index is very large"
    )
    load_interval_s: float = option(
        0.05, help="least time between two load reports of a worker; raise it in cells of hundreds of workers"
    )

    @property
    def policy(self) -> Policy:
        return Policy(
            disaggregation=Disaggregation(self.disaggregation),
            interference=self.interference,
            work=self.work,
            crowding=self.crowding,
            ride_along_tokens=self.ride_along_tokens,
            remote_overhead_s=self.remote_overhead_s,
            turnover_s=self.turnover_s,
            max_waiting_seqs=self.max_waiting_seqs,
            kv_overcommit=self.kv_overcommit,
            expected_ttl_s=self.expected_ttl_s,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_interval_s <= 0:
            raise ValueError("load_interval_s must be above 0")
        if self.warm_up_s < 0:
            raise ValueError("warm_up_s must be at least 0")
        _ = self.policy
