"""Workloads are scaled as ordered over real HTTP, whatever an API server, its other clients or its rights do to us."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.responses import PlainTextResponse

from armature.connectors.connector import Order, ProblemKind
from armature.connectors.kubernetes import KubernetesConnector
from armature.connectors.kubernetes_api import KubernetesApi
from armature.connectors.role import Roles
from armature.connectors.workloads import USUAL_WORKLOADS, workloads_of
from armature.planning.fleet import Counts, Fleet
from armature.runtime.channels import ChannelPool
from tests.support.eventually import eventually
from tests.support.fake_kubernetes import COST, EVERYTHING, FakeKubernetes, config_for, serving
from tests.unit.connectors.fleet import D, FakeWorkers, P

ROOT = Path(__file__).parents[3]
PREFILL, DECODE = ("deployments", "prefill-worker"), ("deployments", "decode-worker")
RIGHTS = list(yaml.safe_load_all((ROOT / "k8s" / "base" / "planner-rights.yaml").read_text()))
(RULES,) = [one["rules"] for one in RIGHTS if one["kind"] == "Role"]


@dataclass
class Scene:
    cluster: FakeKubernetes
    connector: KubernetesConnector
    workers: FakeWorkers = field(default_factory=FakeWorkers)

    def register(self) -> None:
        """Pods that are ready tell the cell so, those on their way out leave."""
        for pod in self.cluster.pods:
            if pod.is_ready and pod.name not in self.workers.records:
                self.workers.add(pod.name, P if pod.app == "prefill-worker" else D)

    async def fleet(self) -> Fleet:
        seen = await self.connector.observe()
        assert not seen.is_stale, seen.problems
        return seen.fleet

    async def order(self, prefill: int, decode: int) -> Any:
        return await self.connector.apply(Order(Counts(0, prefill, decode)))


@asynccontextmanager
async def scene(
    prefill: int = 1, decode: int = 2, workloads: str = USUAL_WORKLOADS, timeout_s: float = 30.0
) -> AsyncIterator[Scene]:
    cluster, workers, channels = FakeKubernetes(rules=RULES), FakeWorkers(), ChannelPool()
    cluster.add(*PREFILL, 1)
    cluster.add(*DECODE, decode)
    async with serving(cluster) as port:
        api = KubernetesApi(config_for(port), timeout_s)
        connector = KubernetesConnector(api, workloads_of(workloads), Roles(workers, channels))
        made = Scene(cluster, connector, workers)
        made.register()
        try:
            yield made
        finally:
            await connector.close()
            await channels.close()


async def test_workers_are_added_and_told_as_starting_until_they_are_ready() -> None:
    async with scene() as here:
        assert await here.fleet() == Fleet(Counts(0, 1, 2))
        outcome = await here.order(2, 4)
        assert set(outcome.done) == {
            "deployment prefill-worker goes from 1 to 2 replicas", "deployment decode-worker goes from 2 to 4 replicas"
        }  # fmt: skip
        assert await here.fleet() == Fleet(Counts(0, 1, 2), Counts(0, 1, 2))
        here.cluster.reconcile()
        assert await here.fleet() == Fleet(Counts(0, 1, 2), Counts(0, 1, 2))
        for pod in here.cluster.pods:
            pod.is_ready = True
        assert await here.fleet() == Fleet(Counts(0, 2, 4))


async def test_an_order_given_twice_is_carried_out_once_even_before_any_pod_has_moved() -> None:
    async with scene(decode=4) as here:
        for counts in ((2, 4), (1, 2)):
            assert (await here.order(*counts)).done
            again = await here.order(*counts)
            assert not again.done and not again.problems
            assert (await here.fleet()).wanted == Counts(0, *counts)


async def test_the_idlest_go_and_drain() -> None:
    async with scene(decode=4) as here:
        pods = [pod for pod in here.cluster.pods if pod.app == "decode-worker"]
        here.workers.load = {pod.name: load for pod, load in zip(pods, (5, 0, 7, 3), strict=True)}
        await here.order(1, 2)
        here.cluster.reconcile()
        assert [pod.is_terminating for pod in pods] == [False, True, False, True]
        assert await here.fleet() == Fleet(Counts(0, 1, 2), draining=2)


async def test_those_that_start_go_before_any_that_works() -> None:
    async with scene() as here:
        await here.order(1, 4)
        here.cluster.reconcile()
        await here.order(1, 3)
        here.cluster.reconcile()
        gone = [pod for pod in here.cluster.pods if pod.is_terminating]
        assert len(gone) == 1 and not gone[0].is_ready
        assert gone[0].number == max(pod.number for pod in here.cluster.pods)


async def test_an_order_that_is_taken_back_leaves_no_marks() -> None:
    async with scene(decode=3) as here:
        await here.order(1, 2)
        await here.order(1, 3)
        await here.order(1, 1)
        marked = [pod for pod in here.cluster.pods if COST in pod.annotations]
        assert len(marked) == 2


async def test_a_worker_that_has_changed_its_role_counts_as_what_it_is_and_leaves_from_where_it_runs() -> None:
    async with scene(decode=3) as here:
        turned = here.cluster.pods[-1].name
        here.workers.add(turned, P)
        assert await here.fleet() == Fleet(Counts(0, 2, 2))
        here.workers.load = {name: 9 for name in here.workers.records if name != turned}
        await here.order(1, 2)
        assert here.cluster.replicas == {PREFILL: 1, DECODE: 2}
        here.cluster.reconcile()
        assert [pod.name for pod in here.cluster.pods if pod.is_terminating] == [turned]


async def test_stateful_sets_are_scaled_as_well() -> None:
    workloads = "prefill=deployment/prefill-worker,decode=statefulset/decoders"
    async with scene(decode=0, workloads=workloads) as here:
        here.cluster.rules = EVERYTHING
        here.cluster.add("statefulsets", "decoders", 2)
        await here.order(1, 3)
        assert here.cluster.replicas["statefulsets", "decoders"] == 3
        await here.order(1, 1)
        assert here.cluster.replicas["statefulsets", "decoders"] == 1
        assert not any("patch" in call for call in here.cluster.calls)


async def test_after_a_conflict_the_fleet_is_looked_at_again() -> None:
    """Somebody scales to 5 while we go from 2 to 3: we end at 3, from 5."""
    async with scene() as here:
        edits = iter([5])

        def meddle() -> None:
            for replicas in edits:
                here.cluster.edit(*DECODE, replicas)
                break

        here.cluster.before_update = meddle
        outcome = await here.order(1, 3)
        assert outcome.done == ("deployment decode-worker goes from 5 to 3 replicas",)
        assert not outcome.problems
        assert here.cluster.replicas[DECODE] == 3


async def test_endless_conflicts_are_told_and_left_to_the_next_step() -> None:
    async with scene() as here:
        here.cluster.before_update = lambda: here.cluster.edit(*DECODE, here.cluster.replicas[DECODE] + 1)
        outcome = await here.order(1, 1)
        assert [problem.kind for problem in outcome.problems] == [ProblemKind.CONFLICT]
        assert len([call for call in here.cluster.calls if call.startswith("update")]) == 4


@pytest.mark.parametrize(
    ("lacking", "rule"),
    [
        (("deployments/scale", "get"), "{apiGroups: [apps], resources: [deployments/scale], verbs: [get]}"),
        (("deployments/scale", "update"), "{apiGroups: [apps], resources: [deployments/scale], verbs: [update]}"),
        (("pods", "list"), '{apiGroups: [""], resources: [pods], verbs: [list]}'),
        (("pods", "patch"), '{apiGroups: [""], resources: [pods], verbs: [patch]}'),
    ],
)
async def test_a_missing_right_is_named_as_the_rule_to_add(lacking: tuple[str, str], rule: str) -> None:
    async with scene(decode=3) as here:
        await here.connector.observe()
        here.cluster.rules = [
            {**one, "verbs": [verb for verb in one["verbs"] if (one["resources"][0], verb) != lacking]} for one in RULES
        ]
        (problem,) = (await here.order(1, 2)).problems
        assert problem.kind is ProblemKind.DENIED
        assert rule in problem.text and "cannot" in problem.text
        # Without the right to mark pods the fleet shrinks all the same.
        assert here.cluster.replicas[DECODE] == (2 if lacking == ("pods", "patch") else 3)
        if lacking[1] in ("get", "list"):
            seen = await here.connector.observe()
            assert seen.is_stale and seen.fleet == Fleet(Counts(0, 1, 3))


async def test_while_the_api_is_away_the_last_known_fleet_is_told_as_stale() -> None:
    async with scene() as here:
        known = await here.fleet()
        for answer in (PlainTextResponse("upstream is gone", 502), PlainTextResponse("slow down", 429)):
            here.cluster.answers = answer
            seen = await here.connector.observe()
            assert (seen.fleet, seen.is_stale) == (known, True)
            assert [problem.kind for problem in seen.problems] == [ProblemKind.AWAY]
            assert [problem.kind for problem in (await here.order(5, 5)).problems] == [ProblemKind.AWAY]
        here.cluster.answers = None
        assert await here.fleet() == known
        assert here.cluster.replicas == {PREFILL: 1, DECODE: 2}


async def test_nobody_listening_is_the_same_as_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    channels = ChannelPool()
    connector = KubernetesConnector(
        KubernetesApi(config_for(port)), workloads_of(USUAL_WORKLOADS), Roles(FakeWorkers(), channels)
    )
    seen = await connector.observe()
    assert seen.is_stale and seen.problems[0].kind is ProblemKind.AWAY
    await connector.close()
    await channels.close()


async def test_a_hanging_api_is_given_up_and_calls_do_not_pile_up() -> None:
    async with scene(timeout_s=0.3) as here:
        here.cluster.is_hanging = True
        seen = await asyncio.gather(*(here.connector.observe() for _ in range(5)))
        assert all(one.is_stale for one in seen)
        assert {one.problems[0].kind for one in seen} == {ProblemKind.AWAY}
        # Two calls a look, and those of the look before it, which the server may hear of later.
        assert here.cluster.most_in_progress <= 4
        here.cluster.is_hanging = False

        async def is_back() -> bool:
            return not (await here.connector.observe()).is_stale

        await eventually(is_back)


async def test_what_keeps_pods_from_starting_is_told() -> None:
    async with scene() as here:
        await here.order(2, 3)
        here.cluster.reconcile()
        full, broken = [pod for pod in here.cluster.pods if not pod.is_ready]
        unscheduled = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "no GPU is free",
        }
        full.status = {"conditions": [unscheduled]}
        waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
        container = {"name": "service", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        broken.status = {"containerStatuses": [{**container, "state": {"waiting": waiting}}]}
        problems = (await here.connector.observe()).problems
        assert [problem.kind for problem in problems] == [ProblemKind.REFUSED, ProblemKind.FAILED]
        assert "no GPU is free" in problems[0].text and "no such image" in problems[1].text


async def test_what_is_not_there_is_refused_by_name() -> None:
    async with scene(workloads="prefill=deployment/prefill-worker,decode=deployment/decoder") as here:
        here.cluster.rules = EVERYTHING
        (problem,) = (await here.connector.observe()).problems
        assert problem.kind is ProblemKind.REFUSED and "no deployment decoder in namespace cell" in problem.text


async def test_roles_without_a_workload_are_told() -> None:
    async with scene() as here:
        (problem,) = (await here.connector.apply(Order(Counts(2, 1, 2)))).problems
        assert problem.kind is ProblemKind.REFUSED and "2 aggregated workers are wanted" in problem.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "decode",
        "decode=deployment/",
        "decode=pod/x",
        "writer=deployment/x",
        "prefill=deployment/x,decode=deployment/x",
    ],
)
def test_workloads_must_be_written_as_told(text: str) -> None:
    with pytest.raises(ValueError, match="workloads"):
        workloads_of(text)
