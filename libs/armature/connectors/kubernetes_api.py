"""What the Kubernetes connector asks of the API server: scale subresources and pods. What goes wrong comes in words."""

import asyncio
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import httpx2
from lightkube import ApiError, AsyncClient, ConfigError, KubeConfig
from lightkube.models.autoscaling_v1 import ScaleSpec
from lightkube.resources.apps_v1 import Deployment, StatefulSet
from lightkube.resources.core_v1 import Pod
from lightkube.types import PatchType

from armature.connectors.connector import Problem, ProblemKind
from armature.connectors.workloads import Workload

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""By which a ReplicaSet that shrinks chooses: the least goes first."""
_TIMEOUT_S = 3.0
"""Of one call."""
_SCALES: Mapping[str, Any] = {"deployment": Deployment.Scale, "statefulset": StatefulSet.Scale}
_BEGINNING = datetime.min.replace(tzinfo=UTC)
_HOPELESS = ("CrashLoopBackOff", "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")

T = TypeVar("T")


class KubernetesError(Exception):
    """A call came to nothing."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.text)
        self.problem = problem


class Scale(NamedTuple):
    """How many replicas a workload is to have."""

    replicas: int
    selector: Mapping[str, str]
    """Labels of its pods."""
    version: Any
    """The object itself: it can be replaced by as many replicas as long as nobody else has."""


class PodView(NamedTuple):
    """One pod."""

    name: str
    created: datetime
    is_ready: bool
    is_terminating: bool
    deletion_cost: int | None
    trouble: Problem | None
    """Why it does not start."""


class KubernetesApi:
    """Each call ends within seconds, and raises nothing but `KubernetesError`."""

    def __init__(self, config: KubeConfig, timeout_s: float = _TIMEOUT_S) -> None:
        self._client = AsyncClient(config, timeout=httpx2.Timeout(timeout_s), field_manager="armature-planner")
        self._timeout_s = timeout_s

    @classmethod
    def from_environment(cls) -> "KubernetesApi":
        """As the pod's service account, or else by the kubeconfig.

        Raises:
            ConfigError: there is neither.
        """
        return cls(KubeConfig.from_env())

    @property
    def namespace(self) -> str:
        return self._client.namespace

    async def scale(self, workload: Workload) -> Scale:
        """What a workload is to have."""
        asked = self._client.get(_SCALES[workload.kind], workload.name)
        found = await self._call(asked, "get", f"{workload.kind}s/scale", workload)
        spec, status = found.spec, found.status
        selector: str = (status.selector if status else None) or ""
        words = [word.partition("=") for word in selector.split(",") if "=" in word]
        labels = {name: value for name, _, value in words}
        return Scale((spec.replicas if spec else None) or 0, labels, found)

    async def set_replicas(self, workload: Workload, scale: Scale, replicas: int) -> None:
        """Make them so many; a conflict if somebody has changed the workload since `scale` was read."""
        scale.version.spec = ScaleSpec(replicas=replicas)
        asked = self._client.replace(scale.version, workload.name)
        await self._call(asked, "update", f"{workload.kind}s/scale", workload)

    async def pods(self, workload: Workload, scale: Scale) -> list[PodView]:
        """Its pods, the oldest first."""

        async def listed() -> list[PodView]:
            return [_view(pod) async for pod in self._client.list(Pod, labels=dict(scale.selector))]

        if not scale.selector:
            text = f"{workload} has no selector by labels, so its pods can't be told from others"
            raise KubernetesError(Problem(ProblemKind.REFUSED, text))
        found = await self._call(listed(), "list", "pods", workload)
        return sorted(found, key=lambda pod: (pod.created, pod.name))

    async def set_deletion_cost(self, pod: str, cost: int | None) -> None:
        """Say whether it shall go before others; None: it is like them."""
        patch = {"metadata": {"annotations": {DELETION_COST: None if cost is None else str(cost)}}}
        asked = self._client.patch(Pod, pod, patch, patch_type=PatchType.MERGE)
        await self._call(asked, "patch", "pods", Workload("pod", pod))

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, asked: Awaitable[T], verb: str, resource: str, workload: Workload) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asked
        except ApiError as error:
            raise KubernetesError(self._refused(error, verb, resource, workload)) from error
        except TimeoutError as error:
            raise KubernetesError(_away(f"no answer within {self._timeout_s:g} s")) from error
        # An answer that is no Status, such as a proxy's page, or none; and a token that is not there any more.
        except (httpx2.HTTPError, ConfigError) as error:
            raise KubernetesError(_away(str(error) or type(error).__name__)) from error

    def _refused(self, error: ApiError, verb: str, resource: str, workload: Workload) -> Problem:
        code, said = error.response.status_code, error.status.message or str(error)
        if code == 403:
            group = "apps" if "/" in resource else '""'
            rule = f"{{apiGroups: [{group}], resources: [{resource}], verbs: [{verb}]}}"
            text = f"the planner's role in namespace {self.namespace} lacks the rule {rule}: {said}"
            return Problem(ProblemKind.DENIED, text)
        if code == 401:
            return Problem(
                ProblemKind.DENIED, f"the Kubernetes API does not know the planner's service account: {said}"
            )
        if code == 404:
            text = f"there is no {workload} in namespace {self.namespace}; name what there is by --workloads"
            return Problem(ProblemKind.REFUSED, text)
        if code == 409:
            return Problem(ProblemKind.CONFLICT, f"somebody else has changed {workload} meanwhile")
        if code == 429 or code >= 500:
            return _away(f"{code} {said}")
        return Problem(ProblemKind.REFUSED, f"{workload} can't be changed: {said}")


def _away(text: str) -> Problem:
    return Problem(ProblemKind.AWAY, f"the Kubernetes API is away: {text}")


def _view(pod: Pod) -> PodView:
    metadata, status = pod.metadata, pod.status
    assert metadata is not None
    conditions = {one.type: one for one in (status.conditions if status else None) or []}
    ready = conditions.get("Ready")
    try:
        cost = int((metadata.annotations or {})[DELETION_COST])
    except (KeyError, ValueError):
        cost = None
    return PodView(
        name=metadata.name or "",
        created=metadata.creationTimestamp or _BEGINNING,
        is_ready=ready is not None and ready.status == "True",
        is_terminating=metadata.deletionTimestamp is not None,
        deletion_cost=cost,
        trouble=_trouble(metadata.name or "", conditions.get("PodScheduled"), status),
    )


def _trouble(name: str, scheduled: Any, status: Any) -> Problem | None:
    if scheduled is not None and scheduled.status == "False" and scheduled.reason == "Unschedulable":
        return Problem(ProblemKind.REFUSED, f"there is no room for pod {name}: {scheduled.message}")
    for container in (status.containerStatuses if status else None) or []:
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason in _HOPELESS:
            return Problem(ProblemKind.FAILED, f"pod {name} does not start: {waiting.reason}, {waiting.message}")
    return None
