"""What a worker counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

from armature.scheduling.request import EngineLoad

steps = Counter("armature_worker_steps_total", "Engine steps that had something to tell.")
prefill_tokens = Counter("armature_worker_prefill_tokens_total", "Prompt tokens computed here.")
decode_tokens = Counter("armature_worker_decode_tokens_total", "Tokens produced.")
cached_tokens = Counter("armature_worker_cached_tokens_total", "Prompt tokens found in this worker's prefix cache.")
preemptions = Counter("armature_worker_preemptions_total", "Requests that lost their blocks and were computed again.")
requests = Counter("armature_worker_requests_total", "Requests that have ended, by finish reason.", ["reason"])
fetches = Counter("armature_worker_fetches_total", "Prompts fetched from another worker, by transport.", ["transport"])
fetch_failures = Counter(
    "armature_worker_fetch_failures_total", "Prompts whose rest was computed here after a failed fetch.", ["reason"]
)
transferred_bytes = Counter(
    "armature_worker_kv_transfer_bytes_total", "KV bytes read from other workers.", ["transport"]
)
transfer_s = Histogram(
    "armature_worker_kv_transfer_seconds",
    "Time in which the blocks of one prompt were being read.",
    ["transport"],
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
leases_expired = Counter(
    "armature_worker_leases_expired_total", "Stagings that were freed because no reader released them in time."
)
slow_readers = Counter(
    "armature_worker_slow_readers_total", "Token streams whose requests were cancelled, since nobody took the tokens."
)

onboarded_blocks = Counter(
    "armature_worker_onboarded_blocks_total", "KV blocks read from tiers below the device.", ["tier"]
)
onboarded_bytes = Counter(
    "armature_worker_onboarded_bytes_total", "KV bytes read from tiers below the device.", ["tier"]
)
onboarded_tokens = Counter(
    "armature_worker_onboarded_tokens_total",
    "Prompt tokens read from tiers below the device instead of computed.",
    ["tier"],
)
onboard_s = Histogram(
    "armature_worker_onboard_seconds",
    "From asking for a prompt's blocks below the device to the last of them.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
onboard_failures = Counter(
    "armature_worker_onboard_failures_total", "Prompts of which blocks were to be read but were computed.", ["reason"]
)
offload_blocks = Counter(
    "armature_worker_offload_blocks_total", "KV blocks offered to tiers below the device, by what became of them.",
    ["outcome"],
)  # fmt: skip
offload_missed_blocks = Counter(
    "armature_worker_offload_missed_blocks_total", "KV blocks that were evicted before they could be offered."
)
offloaded_bytes = Counter("armature_worker_offloaded_bytes_total", "KV bytes that were copied below the device.")
offload_s = Histogram(
    "armature_worker_offload_seconds",
    "Time in which a run of blocks was copied.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
offload_losses = Counter(
    "armature_worker_offload_losses_total", "How often the node's kv-offload was not heard any more."
)

_LOAD = {
    "running_seqs": "Requests in the engine's current step.",
    "waiting_seqs": "Requests that wait for room.",
    "waiting_prefill_tokens": "Prompt tokens that are still to be computed.",
    "free_blocks": "KV blocks that a new request could have.",
    "total_blocks": "KV blocks in the pool.",
    "cached_blocks": "KV blocks that the prefix cache can find.",
    "quarantined_blocks": "KV blocks that a late read may still overwrite.",
    "staged_blocks": "KV blocks held for readers.",
    "failed_steps_in_a_row": "Engine steps that failed since the last that did not.",
}
_load_gauges = {name: Gauge(f"armature_worker_{name}", text) for name, text in _LOAD.items()}
_stagings = Gauge("armature_worker_stagings", "Prompts staged for readers, under a lease or with an open call.")


def watch(load: Callable[[], EngineLoad], stagings: Callable[[], int]) -> None:
    """Read the load whenever metrics are scraped, so that a step pays nothing for them."""
    for name, gauge in _load_gauges.items():
        gauge.set_function(lambda name=name: float(getattr(load(), name)))
    _stagings.set_function(lambda: float(stagings()))


def counted(metric: Counter | Histogram) -> dict[str, float]:
    """What a counter has come to, or a histogram's sum, by its label; by an empty one if it has none."""
    samples = (sample for family in metric.collect() for sample in family.samples)
    return {
        next(iter(sample.labels.values()), ""): sample.value
        for sample in samples
        if sample.name.endswith(("_total", "_sum"))
    }
