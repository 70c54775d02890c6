"""What the Dockerfile, the compose file and the Kubernetes manifests say of the services' containers, as data."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from armature.runtime.settings import ENV_PREFIX, CommonSettings, load

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parent.name.replace("_", "-") for path in (ROOT / "services").glob("*/app.py"))
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
COMPONENT = {"app.kubernetes.io/component": "service"}
# What the cluster fills in when a pod starts.
FIELDS = {"metadata.name": "some-pod-7d4f", "spec.nodeName": "node-1", "status.podIP": "10.0.0.7"}
KUBERNETES = "1.32"
# Of operators; their schemas are not Kubernetes'.
CUSTOM = {"ServiceMonitor", "PeerAuthentication", "DestinationRule", "VirtualService"}
SECRET = "sixteen-characters-or-more"

Manifest = dict[str, Any]


@cache
def settings_class(service: str) -> type[CommonSettings]:
    module = importlib.import_module(f"services.{service.replace('-', '_')}.settings")
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    (found,) = [value for value in own if isinstance(value, type) and issubclass(value, CommonSettings)]
    return found


def known_variables(service: str) -> set[str]:
    """The environment variables that a service reads."""
    return {f"{ENV_PREFIX}{one.name.upper()}" for one in fields(settings_class(service))}


@dataclass(frozen=True)
class Container:
    """One service's container: what its process is given, and which of it was meant for this service alone."""

    service: str
    env: dict[str, str]
    own_env: set[str]
    args: tuple[str, ...] = ()
    ports: dict[str, int] = field(default_factory=dict[str, int])
    spec: Manifest = field(default_factory=Manifest)

    def settings(self) -> Any:
        """As the service itself would read them."""
        return load(settings_class(self.service), list(self.args), prog=self.service, env=self.env)


# --- Dockerfile


@dataclass(frozen=True)
class Stage:
    name: str
    steps: tuple[tuple[str, str], ...]
    """Instruction and the rest of its line."""

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.steps if name == instruction]

    @property
    def env(self) -> dict[str, str]:
        words = [word for rest in self.all("ENV") for word in shlex.split(rest)]
        return dict(word.split("=", 1) for word in words)


@cache
def stages() -> list[Stage]:
    """The stages of the Dockerfile, in order."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    steps = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]
    starts = [place for place, (word, _) in enumerate(steps) if word == "FROM"]
    return [
        Stage(steps[start][1].partition(" AS ")[2], tuple(steps[start + 1 : end]))
        for start, end in zip(starts, [*starts[1:], len(steps)], strict=True)
    ]


# --- compose


@cache
def compose() -> Manifest:
    text = (ROOT / "compose" / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))


def compose_containers() -> Iterator[Container]:
    for name, service in compose()["services"].items():
        if "build" in service:
            assert service["build"]["args"] == {"SERVICE": name}
            own = service["environment"]
            yield Container(name, stages()[-1].env | own, set(own), spec=service)


# --- Kubernetes


@cache
def rendered(overlay: str) -> list[Manifest]:
    """What `kubectl apply --kustomize` would send of an overlay that we ship."""
    return built(ROOT / "k8s" / "overlays" / overlay)


def built(folder: Path) -> list[Manifest]:
    """Likewise of any folder."""
    kubectl, kustomize = shutil.which("kubectl"), shutil.which("kustomize")
    command = [kubectl, "kustomize"] if kubectl else [kustomize, "build"]
    if command[0] is None:
        pytest.skip("building the overlays needs kubectl or kustomize")
    done = subprocess.run([*map(str, command), str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def check_manifest(manifest: Manifest) -> None:
    """Raise if it breaks Kubernetes' schema; operators' own resources are not known to it."""
    if manifest["kind"] not in CUSTOM:
        _check(json.dumps(manifest))


@cache
def _check(manifest: str) -> None:
    """Overlays have most manifests in common, and to check one takes a tenth of a second."""
    kubernetes_validate.validate(json.loads(manifest), KUBERNETES, strict=True)


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    return [manifest for manifest in rendered(overlay) if manifest["kind"] in kinds]


def workloads(overlay: str) -> list[Manifest]:
    return of_kind(overlay, "Deployment", "DaemonSet", "StatefulSet")


def labels(workload: Manifest) -> dict[str, str]:
    """Of its pods."""
    return workload["spec"]["template"]["metadata"]["labels"]


def selected(overlay: str, selector: Manifest) -> list[Manifest]:
    """The workloads whose pods a label selector picks."""
    wanted = selector.get("matchLabels", {})
    among = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in among)
    return [
        workload
        for workload in workloads(overlay)
        if wanted.items() <= labels(workload).items()
        and all(labels(workload).get(one["key"]) in one["values"] for one in among)
    ]


def ports_of(workload: Manifest) -> dict[str, int]:
    containers = workload["spec"]["template"]["spec"]["containers"]
    return {port["name"]: port["containerPort"] for one in containers for port in one.get("ports", [])}


def containers(overlay: str) -> Iterator[Container]:
    """The services' containers in an overlay."""
    for workload in selected(overlay, {"matchLabels": COMPONENT}):
        (spec,) = workload["spec"]["template"]["spec"]["containers"]
        own = {entry["name"]: _value(entry) for entry in spec.get("env", [])}
        env = stages()[-1].env | _config(overlay, spec) | {name: text for name, text in own.items() if text is not None}
        name = labels(workload)["app.kubernetes.io/name"]
        yield Container(name, env, set(own), tuple(spec.get("args", ())), ports_of(workload), workload)


def _config(overlay: str, spec: Manifest) -> dict[str, str]:
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(overlay, "ConfigMap")}
    found: dict[str, str] = {}
    for source in spec["envFrom"]:
        found |= maps[source["configMapRef"]["name"]]
    return found


def _value(entry: Manifest) -> str | None:
    """None where the secret need not be there: the cell is looked at without."""
    if "value" in entry:
        return entry["value"]
    source = entry["valueFrom"]
    if "fieldRef" in source:
        return FIELDS[source["fieldRef"]["fieldPath"]]
    return None if source["secretKeyRef"].get("optional") else SECRET
