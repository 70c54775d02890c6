"""What a kv-index can be told."""

from dataclasses import dataclass

from armature.runtime.redis_client import RedisSettings
from armature.runtime.settings import option


@dataclass(frozen=True, kw_only=True)
class KvIndexSettings(RedisSettings):
    """The registry of who holds which KV block: hears every worker, tells every router."""

    warm_up_s: float = option(
        5.0, help="how long to wait at the start for the workers' dumps; raise it if large pools take longer to arrive"
    )
    update_interval_s: float = option(
        0.005, help="least time between two messages to a follower; raise it if routers are busy reading them"
    )
    copy_message_blocks: int = option(
        16384, help="blocks in one message of a full copy; lower it if routers pause while they take one in"
    )
    follower_queue_blocks: int = option(
        1_000_000, help="blocks that may wait for one follower, which gets a new copy beyond; raise it for slow links"
    )
    snapshot_interval_s: float = option(
        2.0, help="time between two snapshots of a busy worker's entry in Redis; lower it if workers keep few events"
    )
    snapshot_share: float = option(
        0.05,
        help="share of this process's time that snapshots may take; raise it if they lag behind",
    )
    snapshot_ttl_s: float = option(
        3600.0, help="how long Redis keeps a snapshot; raise it if kv-indexes are away for longer"
    )
    assumed_ttl_s: float = option(
        120.0, help="how long a prompt counts as cached on an engine without KV events; about its pool's turnover time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("warm_up_s", "update_interval_s"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0")
        for key in ("copy_message_blocks", "follower_queue_blocks"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1")
        for key in ("snapshot_interval_s", "snapshot_ttl_s", "assumed_ttl_s"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} must be above 0")
        if not 0 < self.snapshot_share <= 1:
            raise ValueError("snapshot_share must be above 0 and at most 1")
