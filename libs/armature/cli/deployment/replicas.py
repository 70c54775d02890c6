"""The ways to split a model over GPUs of some types, with the step times that were measured of each."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from armature.cli.deployment.request import Asked
from armature.engines.silicon import SiliconError, gpus_per_domain, has_experts, silicon_model
from armature.planning.search.replica import Replica, Split
from armature.planning.search.splits import splits


class Found(NamedTuple):
    """What the tables have."""

    replicas: list[Replica]
    missing: list[str]
    """What they lack, and why."""


def replicas_of(asked: Asked, progress: Callable[[int, int, str], None]) -> Found:
    """Every split that fits; `progress` hears how many of how many are done, and which one comes next.

    Raises:
        SiliconError: the extra is missing, there is no such model or type of GPU, or no split of it fits.
    """
    wanted = [*_wanted(asked)]
    found = Found([], [])
    for i, (gpu, split) in enumerate(wanted):
        progress(i, len(wanted), f"{gpu} {split}")
        try:
            preset = silicon_model(
                model=asked.model, system=gpu, backend=asked.backend, tp=split.tp, pp=split.pp, dp=split.dp, ep=split.ep
            )  # fmt: skip
        except SiliconError as error:
            # Of what is wrong with the question and not with one answer, the first answer tells.
            found.missing.append(f"{gpu} {split}: {error}")
            continue
        found.replicas.append(Replica(
            gpu=gpu, split=split, performance=preset.performance, kv_tokens=preset.kv_tokens,
            token_bytes=preset.token_bytes, max_num_seqs=asked.max_num_seqs,
        ))  # fmt: skip
    progress(len(wanted), len(wanted), "")
    if not found.replicas:
        raise SiliconError(found.missing[0] if found.missing else "there is no way to split it over so few GPUs")
    return found


def _wanted(asked: Asked) -> Iterator[tuple[str, Split]]:
    experts = has_experts(asked.model)
    for gpu in asked.gpus:
        for split in splits(asked.replica_gpus, gpus_per_domain(gpu), has_experts=experts):
            yield gpu, split
