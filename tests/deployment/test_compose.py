"""The compose file: valid, and consistent with the services and with what is configured beside it."""

import json
from typing import Any

import yaml
from jsonschema import Draft7Validator

from tests.support.containers import ROOT, SERVICES, compose, compose_containers, known_variables

FOLDER = ROOT / "compose"


def beside(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def test_it_follows_the_schema_of_compose_files() -> None:
    schema = json.loads((ROOT / "tests" / "data" / "compose-spec.json").read_text())
    errors = [error.message for error in Draft7Validator(schema).iter_errors(compose())]
    assert not errors


def test_every_service_is_there_and_would_start() -> None:
    found = {container.service: container for container in compose_containers()}
    assert sorted(found) == SERVICES
    for container in found.values():
        settings = container.settings()
        assert container.own_env <= known_variables(container.service)
        host, port = settings.etcd_endpoints[0].split(":")
        assert f"--listen-client-urls=http://0.0.0.0:{port}" in compose()["services"][host]["command"]
        assert container.spec["stop_grace_period"] == f"{settings.drain_timeout_s + 15:g}s"
        for published in container.spec.get("ports", []):
            assert int(published.rpartition(":")[2]) == settings.http_port


def test_what_it_mounts_and_waits_for_exists() -> None:
    described = compose()
    for service in described["services"].values():
        assert set(service.get("depends_on", ())) <= set(described["services"])
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in described["volumes"]


def test_prometheus_scrapes_every_service_where_it_tells_its_metrics() -> None:
    (job,) = beside("prometheus.yaml")["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert sorted(found["names"]) == SERVICES
    assert {container.settings().metrics_port for container in compose_containers()} == {found["port"]}


def test_traces_go_through_the_collector_to_the_viewer() -> None:
    collector = beside("otel-collector.yaml")
    receives_at = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    endpoints = {container.settings().otlp_endpoint for container in compose_containers()}
    assert endpoints == {f"otel-collector:{receives_at}"}
    assert collector["exporters"]["otlp"]["endpoint"].partition(":")[0] in compose()["services"]


def test_grafana_asks_services_that_exist() -> None:
    sources = beside("grafana/datasources/all.yaml")["datasources"]
    for source in sources:
        assert source["url"].removeprefix("http://").partition(":")[0] in compose()["services"]
    (provider,) = beside("grafana/dashboards/all.yaml")["providers"]
    mounts = [volume.split(":") for volume in compose()["services"]["grafana"]["volumes"]]
    (shown,) = [FOLDER / source for source, target, _ in mounts if target == provider["options"]["path"]]
    assert list(shown.glob("*.json"))
