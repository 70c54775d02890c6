"""What a router can be told."""

from dataclasses import dataclass, replace
from typing import Literal

from armature.routing.policy import Disaggregation, Policy
from armature.runtime.policies import DEFAULT_POLICY, load_policy
from armature.runtime.redis_client import RedisSettings
from armature.runtime.settings import option


@dataclass(frozen=True, kw_only=True)
class RouterSettings(RedisSettings):
    """Places requests on workers by a policy, which is data; the default one predicts what they cost, in seconds."""

    policy: str = option(
        DEFAULT_POLICY, help="a policy's name or YAML file; change it to weigh things differently or to compare"
    )
    disaggregation: Literal["policy", "auto", "always", "never"] = option(
        "policy", help="where prompts are computed; always or never to measure, or when predictions mislead"
    )
    warm_up_s: float = option(
        2.0, help="how long to wait at the start for a copy of the index; raise it if the index is very large"
    )
    load_interval_s: float = option(
        0.05, help="least time between two load reports of a worker; raise it in cells of hundreds of workers"
    )
    history_bytes: int = option(
        64 << 20,
        help="memory for past decisions, which `armature explain` asks for: about 3 kB each with 8 workers, 120 kB "
        "with 512; raise it to look back further",
    )

    def load_policy(self) -> Policy:
        """Read the policy.

        Raises:
            PolicyError: there is none, or it is wrong.
        """
        policy = load_policy(self.policy)
        if self.disaggregation == "policy":
            return policy
        return replace(policy, disaggregation=Disaggregation(self.disaggregation))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.load_interval_s <= 0:
            raise ValueError("load_interval_s must be above 0")
        for key in ("warm_up_s", "history_bytes"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0")
        self.load_policy()
