"""The policies that come with the library, for placement, offload and planning, and those in operators' files."""

from pathlib import Path
from typing import Any

import armature.offload
import armature.planning
import armature.routing
from armature.offload.policy import OffloadPolicy, offload_policy_of
from armature.planning.policy import PlannerPolicy, planner_policy_of
from armature.routing.policy import Policy, policy_of
from armature.runtime.policy_files import PolicyFolder

DEFAULT_POLICY = "seconds"
_PLACEMENT = PolicyFolder(Path(armature.routing.__file__).parent / "policies", DEFAULT_POLICY)

PLANNER_POLICIES = PolicyFolder(Path(armature.planning.__file__).parent / "policies", "usual")
OFFLOAD_POLICIES = PolicyFolder(Path(armature.offload.__file__).parent / "policies", "frequency")


def shipped_policies() -> list[str]:
    """Names of the placement policies that come with the library, the default one first."""
    return _PLACEMENT.names()


def load_policy(name_or_path: str) -> Policy:
    """The placement policy of that name, or in that file.

    Raises:
        PolicyError: there is none, or it is wrong; the message says what and, if it can be known, in which line.
    """
    return policy_of(read_policy(name_or_path), Path(name_or_path).stem)


def read_policy(name_or_path: str) -> dict[str, Any]:
    """The placement policy as plain data.

    Raises:
        PolicyError: there is no such policy or file, or it is no mapping.
    """
    return _PLACEMENT.read(name_or_path)


def load_offload_policy(name_or_path: str) -> OffloadPolicy:
    """The offload policy of that name, or in that file.

    Raises:
        PolicyError: there is none, or it is wrong; the message says what and, if it can be known, in which line.
    """
    return offload_policy_of(OFFLOAD_POLICIES.read(name_or_path), Path(name_or_path).stem)


def load_planner_policy(name_or_path: str) -> PlannerPolicy:
    """The planner's policy of that name, or in that file.

    Raises:
        PolicyError: there is none, or it is wrong; the message says what and, if it can be known, in which line.
    """
    return planner_policy_of(PLANNER_POLICIES.read(name_or_path), Path(name_or_path).stem)
