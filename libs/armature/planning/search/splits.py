"""The splits that are worth a try."""

from collections.abc import Iterator

from armature.planning.search.replica import Split

_MOST_SHARED = 8
"""GPUs that share a layer's attention: models have few KV heads."""
_MOST_STAGES = 4


def splits(gpus: int, domain: int, *, has_experts: bool) -> Iterator[Split]:
    """Powers of two on at most so many GPUs. Only stages, and experts, reach beyond a `domain` of fast links.

    Groups of attention share experts, so a model without them has one: more would be more replicas.
    """
    for tp in _powers(min(gpus, domain, _MOST_SHARED)):
        for pp in _powers(min(gpus // tp, _MOST_STAGES)):
            yield Split(tp=tp, pp=pp)
        if has_experts:
            for dp in _powers(gpus // tp):
                if tp * dp > 1:
                    yield Split(tp=tp, dp=dp, ep=tp * dp)


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2
