"""Scales Deployments and StatefulSets, one for each role; their pods drain by themselves when they are to go.

A pod is a worker of the same name. What it is told by its record where it has one, since roles change without pods, and
else by its workload. So that the idlest go, they are marked by their deletion cost before a Deployment shrinks;
StatefulSets always give up their last ones.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightkube import ConfigError

from armature.connectors.census import ROLES, counts_of
from armature.connectors.connector import Observed, Order, Outcome, Problem, ProblemKind, Reach
from armature.connectors.kubernetes_api import KubernetesApi, KubernetesError, PodView, Scale
from armature.connectors.role import Roles, joined, name_of
from armature.connectors.workloads import Workload, workloads_of
from armature.planning.fleet import Fleet
from armature.runtime.errors import StartError
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member, Role

_DEADLINE_S = 10.0
"""Of looking, and of carrying out an order, each."""
_ATTEMPTS = 4
"""At an order during which somebody else changes the same."""
_GOES_FIRST = -1000


class _Pool(NamedTuple):
    """One workload as it is."""

    role: "Role.ValueType"
    """That its pods start with."""
    workload: Workload
    scale: Scale
    staying: Sequence[PodView]
    """Pods that are there and not on their way out, the oldest first."""
    leaving: int

    @property
    def missing(self) -> int:
        """Pods that are not there yet."""
        return max(self.scale.replicas - len(self.staying), 0)


class KubernetesConnector:
    """A fleet in one namespace."""

    name = "kubernetes"
    reach = Reach.SCALES

    def __init__(self, api: KubernetesApi, workloads: "Mapping[Role.ValueType, Workload]", roles: Roles) -> None:
        self._api = api
        self._workloads = workloads
        self._roles = roles
        self._turn = asyncio.Lock()
        self._last = Fleet()

    async def observe(self) -> Observed:
        """Pods by what they are now, and what they are still missing."""
        try:
            async with asyncio.timeout(_DEADLINE_S), self._turn:
                pools = await self._look()
        except KubernetesError as error:
            return Observed(self._last, (error.problem,), is_stale=True)
        except TimeoutError:
            return Observed(self._last, (_LATE,), is_stale=True)
        self._last = self._fleet(pools)
        return Observed(self._last, tuple(pod.trouble for pool in pools for pod in pool.staying if pod.trouble))

    async def apply(self, order: Order) -> Outcome:
        """Flip, then bring each workload to its number, looking again whenever somebody else was quicker."""
        flipped = await self._roles.flip(order.flips)
        done: list[str] = []
        try:
            async with asyncio.timeout(_DEADLINE_S), self._turn:
                problems = await self._scale(order, done)
        except TimeoutError:
            problems = [_LATE]
        return joined(flipped, Outcome(tuple(done), tuple(problems)))

    async def close(self) -> None:
        await self._api.close()

    async def _scale(self, order: Order, done: list[str]) -> list[Problem]:
        for attempt in range(_ATTEMPTS):
            try:
                pools, denied = await self._look(), list[Problem]()
                for pool, replicas, going in self._changes(order, pools):
                    denied += await self._mark(pool, going)
                    await self._api.set_replicas(pool.workload, pool.scale, replicas)
                    done.append(f"{pool.workload} goes from {pool.scale.replicas} to {replicas} replicas")
            except KubernetesError as error:
                if error.problem.kind is ProblemKind.CONFLICT and attempt + 1 < _ATTEMPTS:
                    continue
                return [error.problem]
            return [*denied[:1], *self._homeless(order)]
        raise AssertionError("the last attempt returns")

    async def _look(self) -> list[_Pool]:
        async with asyncio.TaskGroup() as tasks:
            looks = [tasks.create_task(self._look_at(role, one)) for role, one in self._workloads.items()]
        pools: list[_Pool] = []
        for look in looks:
            found = look.result()
            if isinstance(found, KubernetesError):
                raise found
            pools.append(found)
        return pools

    async def _look_at(self, role: "Role.ValueType", workload: Workload) -> "_Pool | KubernetesError":
        """A problem is returned: as an exception it would come in a group, and end the other looks."""
        try:
            scale = await self._api.scale(workload)
            pods = await self._api.pods(workload, scale)
        except KubernetesError as error:
            return error
        staying = [pod for pod in pods if not pod.is_terminating]
        # Whoever has been told to shrink will do it presently: those pods are as good as gone.
        surplus = max(len(staying) - scale.replicas, 0)
        gone = {pod.name for pod in self._first_to_go(staying)[:surplus]}
        left = [pod for pod in staying if pod.name not in gone]
        return _Pool(role, workload, scale, left, len(pods) - len(left))

    def _fleet(self, pools: Sequence[_Pool]) -> Fleet:
        members = self._members()
        ready, starting, draining = list[Role.ValueType](), list[Role.ValueType](), 0
        for pool in pools:
            draining += pool.leaving
            starting += [pool.role] * pool.missing
            for pod in pool.staying:
                member = members.get(pod.name)
                role = member.worker.role if member else pool.role
                if member and member.state == MEMBER_STATE_DRAINING:
                    draining += 1
                else:
                    (ready if member or pod.is_ready else starting).append(role)
        return Fleet(counts_of(ready), counts_of(starting), draining)

    def _changes(self, order: Order, pools: Sequence[_Pool]) -> list[tuple[_Pool, int, list[PodView]]]:
        """Workloads that change, to how many replicas, and who is to go."""
        more, going = Counter[Workload](), dict[Workload, list[PodView]]()
        for role, want, have in zip(ROLES, order.counts, self._fleet(pools).wanted, strict=True):
            workload = self._workloads.get(role)
            if want > have and workload is not None:
                more[workload] += want - have
            for pool, pod in self._to_go(role, pools)[: max(have - want, 0)]:
                more[pool.workload] -= 1
                if pod is not None:
                    going.setdefault(pool.workload, []).append(pod)
        return [
            (pool, max(pool.scale.replicas + more[pool.workload], 0), going.get(pool.workload, []))
            for pool in pools
            if more[pool.workload]
        ]

    def _to_go(self, role: "Role.ValueType", pools: Sequence[_Pool]) -> list[tuple[_Pool, PodView | None]]:
        """Workers of a role in the order in which they go: pods that are not there yet, then those that are."""
        members = self._members()
        absent: list[tuple[_Pool, PodView | None]] = [
            (pool, None) for pool in pools if pool.role == role for _ in range(pool.missing)
        ]
        here = {
            pod.name: (pool, pod)
            for pool in pools
            for pod in pool.staying
            if (members[pod.name].worker.role if pod.name in members else pool.role) == role
        }
        order = self._first_to_go([pod for _, pod in here.values()])
        return [*absent, *(here[pod.name] for pod in order)]

    def _first_to_go(self, pods: Sequence[PodView]) -> list[PodView]:
        """Those that are marked, then those that start, the youngest first, then the idlest."""
        idlest = [member.id for role in ROLES for member in self._roles.of_role(role)]
        places = {name: place for place, name in enumerate(idlest)}

        def rank(pod: PodView) -> tuple[bool, bool, float]:
            works = pod.is_ready or pod.name in places
            return (pod.deletion_cost or 0) >= 0, works, places.get(pod.name, 0) if works else -pod.created.timestamp()

        return sorted(pods, key=rank)

    async def _mark(self, pool: _Pool, going: Sequence[PodView]) -> list[Problem]:
        """Those that shall go; marks of an order that was taken back are taken off. Without the right, any may go."""
        if pool.workload.kind != "deployment":
            return []
        names = {pod.name for pod in going}
        problems: list[Problem] = []
        for pod in pool.staying:
            cost = _GOES_FIRST if pod.name in names else None
            if cost != pod.deletion_cost:
                try:
                    await self._api.set_deletion_cost(pod.name, cost)
                except KubernetesError as error:
                    problems.append(error.problem)
        return [problem for problem in problems if problem.kind is ProblemKind.DENIED]

    def _homeless(self, order: Order) -> list[Problem]:
        return [
            Problem(
                ProblemKind.REFUSED,
                f"{want} {name_of(role)} workers are wanted, but --workloads says nothing of {name_of(role)} ones",
            )
            for role, want in zip(ROLES, order.counts, strict=True)
            if want and role not in self._workloads
        ]

    def _members(self) -> dict[str, Member]:
        return {member.id: member for member in self._roles.members()}


def kubernetes_connector(workloads: str, roles: Roles) -> KubernetesConnector:
    """With the rights of the pod that it runs in, or of the kubeconfig.

    Raises:
        StartError: there is neither.
        ValueError: `workloads` is wrong.
    """
    try:
        api = KubernetesApi.from_environment()
    except ConfigError as error:
        raise StartError(
            f"there is no way to a Kubernetes API: {error}; give the pod a service account, or set KUBECONFIG"
        ) from error
    return KubernetesConnector(api, workloads_of(workloads), roles)


_LATE = Problem(ProblemKind.AWAY, f"the Kubernetes API has not answered all that was asked within {_DEADLINE_S:g} s")
