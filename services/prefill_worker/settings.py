"""What a prefill worker can be told."""

from dataclasses import dataclass

from armature.engines.host.settings import WorkerSettings


@dataclass(frozen=True, kw_only=True)
class PrefillWorkerSettings(WorkerSettings):
    """A prefill worker: computes prompts, and holds their KV until a decode worker has read it."""
