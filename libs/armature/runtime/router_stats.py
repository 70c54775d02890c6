"""What a router tells people and tools about itself."""

from armature.routing.queueing.dispatcher import Dispatcher
from armature.v1.router_pb2 import RouterStats


def stats_of(dispatcher: Dispatcher, now_s: float) -> RouterStats:
    """Its work, its queue and its belief in what is cached, at this moment."""
    core, bands = dispatcher.core, dispatcher.by_band().values()
    return RouterStats(
        policy=core.policy.name,
        requests_in_flight=core.requests_in_flight,
        queued_requests=sum(requests for requests, _ in bands),
        queued_work_s=sum(work_s for _, work_s in bands),
        index_blocks=core.index.size().blocks,
        beliefs=[
            RouterStats.Belief(worker_id=worker_id, share=core.trust.factor(worker_id, now_s))
            for worker_id in core.trust.worker_ids
        ],
    )
