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
    load_reports_per_s: float = option(
        2000.0, help="of all workers together, 20 of each at most; each costs some 50 us, of which decisions are short"
    )
    history_bytes: int = option(
        64 << 20, help="memory for decisions to explain, 3 kB each with 8 workers, 120 kB with 512; raise to keep more"
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
        if self.load_reports_per_s <= 0:
            raise ValueError("load_reports_per_s must be above 0")
        for key in ("warm_up_s", "history_bytes"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0")
        self.load_policy()
