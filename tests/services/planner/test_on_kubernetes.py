"""A planner process with a cluster: it finds its way there by the kubeconfig, and sees pods as the fleet."""

from pathlib import Path

import grpc
import pytest

from armature.v1.planner_pb2 import StatusRequest
from armature.v1.planner_pb2_grpc import PlannerStub
from tests.support.eventually import eventually
from tests.support.fake_kubernetes import FakeKubernetes, kubeconfig_for, serving
from tests.support.running import running

FLAGS = ("--namespace", "planner-on-kubernetes", "--connector", "kubernetes", "--mode", "disaggregated")


async def test_a_planner_sees_the_pods_of_its_workloads(
    etcd_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = FakeKubernetes()
    cluster.add("deployments", "prefill-worker", 2)
    cluster.add("deployments", "decode-worker", 3)
    cluster.replicas["deployments", "decode-worker"] = 4
    async with serving(cluster) as port:
        config = tmp_path / "kubeconfig"
        config.write_text(kubeconfig_for(port))
        monkeypatch.setenv("KUBECONFIG", str(config))
        flags = ("--etcd", etcd_address, *FLAGS)
        async with (
            running("services.planner", *flags, stderr=tmp_path / "log") as planner,
            grpc.aio.insecure_channel(planner.address()) as channel,
        ):

            async def sees_them() -> bool:
                status = await PlannerStub(channel).GetStatus(StatusRequest(), timeout=5)
                ready, starting = status.fleet.ready, status.fleet.starting
                return (ready.prefill, ready.decode, starting.decode) == (2, 3, 1)

            await eventually(sees_them, 60.0, "the planner sees the pods")
            status = await PlannerStub(channel).GetStatus(StatusRequest(), timeout=5)
            assert status.connector == "kubernetes"
    assert not any(call.startswith("update") for call in cluster.calls)


async def test_without_a_way_to_a_cluster_it_says_what_to_do(
    etcd_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    flags = ("--etcd", etcd_address, *FLAGS)
    async with running("services.planner", *flags, stderr=tmp_path / "log", ready=False) as planner:
        assert await planner.exit_status(60.0) != 0
        assert "no way to a Kubernetes API" in planner.stderr
