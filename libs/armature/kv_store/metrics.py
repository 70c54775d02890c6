"""What a kv-offload counts, for Prometheus."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from armature.index.tiers import Tier
from armature.offload.space import TierSpace
from armature.offload.tiers import TierCounts

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

offered_blocks = Counter(
    "armature_kv_offload_offered_blocks_total", "Blocks that workers offered, by what became of them.", ["outcome"]
)
hit_blocks = Counter(
    "armature_kv_offload_hit_blocks_total", "Blocks announced to onboarding workers, by where they were.", ["tier"]
)
missed_blocks = Counter("armature_kv_offload_missed_blocks_total", "Blocks asked for that were nowhere.")
onboards = Counter("armature_kv_offload_onboards_total", "Onboard streams, by how far they got.", ["reason"])
written_bytes = Counter("armature_kv_offload_written_bytes_total", "Bytes written to a tier.", ["tier"])
read_bytes = Counter("armature_kv_offload_read_bytes_total", "Bytes read from a tier into another.", ["tier"])
problems = Counter(
    "armature_kv_offload_problems_total", "Blocks that a tier could not write or read, and why.", ["tier", "reason"]
)
seconds = Histogram(
    "armature_kv_offload_seconds",
    "Time of one batch: taken from a worker, brought up until all was ready, written to a tier, read from it.",
    ["operation", "tier"],
    buckets=_BUCKETS,
)
leases_expired = Counter(
    "armature_kv_offload_leases_expired_total", "Onboard streams ended because their worker held them for too long."
)

_blocks = Gauge("armature_kv_offload_blocks", "Blocks in a tier, by state.", ["tier", "state"])
_capacity = Gauge("armature_kv_offload_capacity_blocks", "Blocks that a tier has room for.", ["tier"])
_bytes_per_s = Gauge("armature_kv_offload_bytes_per_second", "Measured speed; 0 until then.", ["tier", "operation"])
_leases = Gauge("armature_kv_offload_leases", "Onboard streams whose blocks are kept.")


class _TierEvents(Collector):
    """What the tiers have counted themselves."""

    def __init__(self) -> None:
        self.counts: Mapping[Tier, TierCounts] = {}

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(
            "armature_kv_offload_tier_blocks", "Blocks of a tier, by what happened to them.", labels=["tier", "event"]
        )
        for tier, counts in self.counts.items():
            for event in ("stored", "refused", "evicted", "expired", "failed"):
                family.add_metric([tier.name.lower(), event], getattr(counts, event))
        yield family


_events = _TierEvents()
REGISTRY.register(_events)


def watch(spaces: Mapping[Tier, TierSpace], counts: Mapping[Tier, TierCounts], leases: Callable[[], int]) -> None:
    """Read what the tiers hold whenever metrics are scraped."""
    for tier, space in spaces.items():
        name = tier.name.lower()
        _capacity.labels(name).set(space.shape.num_blocks)
        _blocks.labels(name, "found").set_function(lambda space=space: float(len(space)))
        _blocks.labels(name, "free").set_function(lambda space=space: float(space.free_blocks))
        _blocks.labels(name, "pinned").set_function(lambda space=space: float(space.num_pinned))
    _events.counts = counts
    _leases.set_function(lambda: float(leases()))


def watch_speed(tier: Tier, operation: str, bytes_per_s: Callable[[], float]) -> None:
    """Likewise how quickly a tier is written or read."""
    _bytes_per_s.labels(tier.name.lower(), operation).set_function(bytes_per_s)
