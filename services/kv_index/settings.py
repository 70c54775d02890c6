"""What a kv-index can be told."""

from dataclasses import dataclass

from armature.runtime.settings import CommonSettings, option


@dataclass(frozen=True, kw_only=True)
class KvIndexSettings(CommonSettings):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("warm_up_s", "update_interval_s"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0")
        for key in ("copy_message_blocks", "follower_queue_blocks"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1")
