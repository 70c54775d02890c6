"""What a planner can be told."""

from dataclasses import dataclass, replace
from typing import Literal

from armature.connectors.workloads import USUAL_WORKLOADS, workloads_of
from armature.planning.policy import PlannerPolicy
from armature.runtime.policies import PLANNER_POLICIES, load_planner_policy
from armature.runtime.settings import CommonSettings, option


@dataclass(frozen=True, kw_only=True)
class PlannerSettings(CommonSettings):
    """Sizes the fleet of one model for targets on what users wait for; what it does is in its log, with the reasons."""

    policy: str = option(
        PLANNER_POLICIES.default,
        help="targets, limits and patience: a policy's name or YAML file; all planners alike",
    )
    mode: Literal["auto", "policy", "aggregated", "disaggregated"] = option(
        "auto", help="which workers there are to be; auto: of those kinds that are there, policy: as that says"
    )
    connector: Literal["advice", "role", "local", "kubernetes"] = option(
        "advice",
        help="how plans are carried out: not at all, by changes of role, by processes of `armature up`, by replicas",
    )
    workloads: str = option(
        USUAL_WORKLOADS, help="Deployments or StatefulSets that the kubernetes connector scales, one a role"
    )
    control: str = option("", help="where `armature up` lets the local connector in, which it tells by itself")
    model: str = option("", help="whose workers; needed where a cell serves several, else that of the first worker")
    ttft_s: float = option(0.0, help="target for the first token; 0: the policy's")
    itl_s: float = option(0.0, help="target for each token after it; 0: the policy's")
    min_workers: int = option(0, help="it always leaves so many; 0: the policy's")
    idle_after_s: float = option(
        0.0,
        help="without a request, until the last workers leave: who asks then waits for one; 0: as the policy says",
    )
    max_workers: int = option(0, help="it never wants more; 0: the policy's")
    max_gpus: int = option(0, help="of all workers together; 0: the policy's")
    worker_gpus: int = option(1, help="GPUs that a worker takes, for limits in GPUs")
    rehearsal_budget_s: float = option(
        5.0, help="longest rehearsal of a plan before it is carried out without; 0: none is rehearsed"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("ttft_s", "itl_s", "min_workers", "max_workers", "max_gpus", "idle_after_s", "rehearsal_budget_s"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key} must not be negative")
        if self.idle_after_s and self.min_workers:
            raise ValueError(f"idle_after_s lets the last workers leave, min_workers {self.min_workers} keeps some")
        if self.worker_gpus < 1:
            raise ValueError("worker_gpus must be at least 1")
        if self.connector == "local" and not self.control:
            raise ValueError("control is needed by the local connector: start the planner by `armature up --planner`")
        workloads_of(self.workloads)
        self.load_policy()

    def load_policy(self) -> PlannerPolicy:
        """The policy, with what is set beside it.

        Raises:
            PolicyError: there is none, or it is wrong.
            ValueError: what is set does not go with it.
        """
        policy = load_planner_policy(self.policy)
        targets, limits = policy.targets, policy.limits
        targets = replace(targets, ttft_s=self.ttft_s or targets.ttft_s, itl_s=self.itl_s or targets.itl_s)
        limits = replace(
            limits,
            min_workers=0 if self.idle_after_s else self.min_workers or limits.min_workers,
            max_workers=self.max_workers or limits.max_workers,
            gpus=self.max_gpus or limits.gpus,
        )
        mode = policy.mode if self.mode in ("auto", "policy") else self.mode
        idle_after_s = self.idle_after_s or policy.idle_after_s
        return replace(policy, targets=targets, limits=limits, mode=mode, idle_after_s=idle_after_s)
