"""What a decode worker can be told."""

from dataclasses import dataclass
from typing import Literal

from armature.engines.host.settings import WorkerSettings
from armature.runtime.settings import option


@dataclass(frozen=True, kw_only=True)
class DecodeWorkerSettings(WorkerSettings):
    """A decode worker: produces tokens, and lets prefill workers compute prompts when the router says so."""

    role: Literal["decode", "aggregated"] = option(
        "decode", help="aggregated computes every prompt itself; for cells without prefill workers"
    )
