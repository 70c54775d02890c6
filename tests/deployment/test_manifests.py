"""The Kubernetes manifests: valid, consistent with each other, and with what the services' settings and metrics are."""

from typing import Any

import pytest

from armature.connectors.workloads import workloads_of
from tests.metrics_page import metrics
from tests.support.containers import (
    COMPONENT,
    OVERLAYS,
    SERVICES,
    Container,
    Manifest,
    check_manifest,
    containers,
    known_variables,
    labels,
    of_kind,
    ports_of,
    rendered,
    selected,
    workloads,
)

UNITS = {"Mi": 1 << 20, "Gi": 1 << 30}

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


def size_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def limit_bytes(container: Container) -> int:
    return size_bytes(pod(container)["containers"][0]["resources"]["limits"]["memory"])


def pod(container: Container) -> Manifest:
    return container.spec["spec"]["template"]["spec"]


def services_of(overlay: str) -> set[str]:
    """All, but where vLLM keeps its blocks to itself."""
    return set(SERVICES) - ({"prefill-worker", "kv-offload"} if overlay == "gpu-vllm" else set())


def test_every_manifest_follows_kubernetes_schema(overlay: str) -> None:
    for manifest in rendered(overlay):
        check_manifest(manifest)


def test_every_service_is_there_and_would_start(overlay: str) -> None:
    found = {container.service: container for container in containers(overlay)}
    assert set(found) == services_of(overlay)
    for container in found.values():
        settings = container.settings()
        assert container.ports["grpc"] == settings.port
        assert container.ports["metrics"] == settings.metrics_port
        assert container.ports.get("http") == getattr(settings, "http_port", None)
        assert settings.etcd_endpoints and settings.advertise_host and settings.node
        assert pod(container)["containers"][0]["image"].partition(":")[0] == f"armature/{container.service}"


def test_every_variable_is_one_that_a_service_reads(overlay: str) -> None:
    readers = {service: known_variables(service) for service in SERVICES}
    for container in containers(overlay):
        assert container.own_env <= readers[container.service]
    for config in of_kind(overlay, "ConfigMap"):
        variables = {name for name in config["data"] if not name.endswith(".json")}
        assert variables <= set().union(*readers.values())


def test_a_pod_has_time_to_drain(overlay: str) -> None:
    for container in containers(overlay):
        before_s = pod(container)["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        drain_s = container.settings().drain_timeout_s
        assert pod(container)["terminationGracePeriodSeconds"] >= before_s + drain_s + 10


def test_memory_holds_what_it_is_told_to_hold(overlay: str) -> None:
    for container in containers(overlay):
        settings = container.settings()
        pool = getattr(settings, "host_bytes", 0)
        if getattr(settings, "device", "cuda") != "cuda":
            pool = settings.kv_cache_bytes
        assert pool + (256 << 20) <= limit_bytes(container)


def test_probes_ask_for_what_is_served(overlay: str) -> None:
    for container in containers(overlay):
        (spec,) = pod(container)["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = spec[probe].get("grpc") or spec[probe]["httpGet"]
            assert asked["port"] in {*container.ports, *container.ports.values()}
        ready = spec["readinessProbe"]
        assert ready["httpGet"]["path"] == "/ready" if container.service == "gateway" else "grpc" in ready


def test_nothing_runs_with_more_rights_than_it_needs(overlay: str) -> None:
    for workload in workloads(overlay):
        spec = workload["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] >= 10000
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        for one in spec["containers"]:
            context = one["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(one["resources"]["requests"])


def test_services_lead_to_ports_of_pods(overlay: str) -> None:
    for service in of_kind(overlay, "Service"):
        (workload,) = selected(overlay, {"matchLabels": service["spec"]["selector"]})
        for port in service["spec"]["ports"]:
            assert ports_of(workload)[port["targetPort"]] == port["port"]
            assert port["name"] == "metrics" or "appProtocol" in port


def test_policies_and_budgets_are_about_pods_that_exist(overlay: str) -> None:
    budgeted = {
        workload["metadata"]["name"]
        for budget in of_kind(overlay, "PodDisruptionBudget")
        for workload in selected(overlay, budget["spec"]["selector"])
    }
    assert budgeted >= services_of(overlay) - {"kv-offload"}
    for policy in of_kind(overlay, "NetworkPolicy"):
        targets = selected(overlay, policy["spec"]["podSelector"])
        assert targets
        for rule in policy["spec"].get("ingress", []):
            peers = [peer for peer in rule.get("from", []) if "namespaceSelector" not in peer]
            assert all(selected(overlay, peer["podSelector"]) for peer in peers)
            named = [port["port"] for port in rule.get("ports", [])]
            assert all(port in ports_of(target) for port in named for target in targets)


def test_autoscalers_scale_what_exists_by_metrics_that_exist(overlay: str) -> None:
    known = {metric.name for metric in metrics()}
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        names = [workload["metadata"]["name"] for workload in workloads(overlay)]
        assert scaler["spec"]["scaleTargetRef"]["name"] in names
        asked = [one["pods"]["metric"]["name"] for one in scaler["spec"]["metrics"] if one["type"] == "Pods"]
        assert set(asked) <= known


def test_custom_resources_name_what_exists(overlay: str) -> None:
    services = {service["metadata"]["name"]: service for service in of_kind(overlay, "Service")}
    for monitor in of_kind(overlay, "ServiceMonitor"):
        wanted: dict[str, Any] = monitor["spec"]["selector"]["matchLabels"]
        scraped = {name for name, one in services.items() if wanted.items() <= one["metadata"]["labels"].items()}
        assert scraped == services_of(overlay)
        for endpoint in monitor["spec"]["endpoints"]:
            ports = [{port["name"] for port in services[name]["spec"]["ports"]} for name in scraped]
            assert all(endpoint["port"] in names for names in ports)
    for rule in of_kind(overlay, "DestinationRule"):
        assert rule["spec"]["host"] in services
    for route in of_kind(overlay, "VirtualService"):
        assert set(route["spec"]["hosts"]) <= set(services)
    for authentication in of_kind(overlay, "PeerAuthentication"):
        assert authentication["spec"]["mtls"] == {"mode": "STRICT"}
        if "selector" in authentication["spec"]:
            assert authentication["spec"]["selector"] == {"matchLabels": COMPONENT}
            excepted = set(authentication["spec"]["portLevelMtls"])
            assert excepted == {str(container.ports["metrics"]) for container in containers(overlay)}


def test_in_a_mesh_nothing_goes_around_it(overlay: str) -> None:
    for container in containers(overlay):
        meshed = bool(of_kind(overlay, "PeerAuthentication"))
        assert getattr(container.settings(), "transport", "grpc") == "grpc" or not meshed


def test_names_are_told_by_labels(overlay: str) -> None:
    for workload in workloads(overlay):
        assert labels(workload)["app.kubernetes.io/name"] == workload["metadata"]["name"]
        assert labels(workload)["app.kubernetes.io/part-of"] == "armature"


def test_the_planner_may_scale_its_workloads_and_no_others(overlay: str) -> None:
    (planner,) = [container for container in containers(overlay) if container.service == "planner"]
    workloads_named = workloads_of(planner.settings().workloads).values()
    existing = {(one["kind"].lower(), one["metadata"]["name"]) for one in workloads(overlay)}
    assert set(workloads_named) <= existing
    account = pod(planner)["serviceAccountName"]
    (binding,) = of_kind(overlay, "RoleBinding")
    assert [(one["kind"], one["name"]) for one in binding["subjects"]] == [("ServiceAccount", account)]
    assert account in [one["metadata"]["name"] for one in of_kind(overlay, "ServiceAccount")]
    (role,) = of_kind(overlay, "Role")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    (scales,) = [rule for rule in role["rules"] if rule["apiGroups"] == ["apps"]]
    assert scales["resourceNames"] == [one.name for one in workloads_named]
    others = [pod(one).get("serviceAccountName") for one in containers(overlay) if one.service != "planner"]
    assert set(others) == {None}


def test_a_workload_is_scaled_by_one_only(overlay: str) -> None:
    (planner,) = [container.settings() for container in containers(overlay) if container.service == "planner"]
    planned = {one.name for one in workloads_of(planner.workloads).values()}
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in of_kind(overlay, "HorizontalPodAutoscaler")}
    assert (planner.connector == "kubernetes") == (not planned & scaled)
    fixed = {one["metadata"]["name"] for one in workloads(overlay) if "replicas" in one["spec"]}
    assert not fixed & (planned | scaled), "applying the manifests again would undo what was scaled"
