"""An API server over real HTTP that knows pods, and scale subresources of Deployments and StatefulSets.

As the real one it refuses a replacement whose `resourceVersion` is not the present one (409), and what no rule allows
(403). Controllers do nothing by themselves: `reconcile` is one turn of theirs.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import uvicorn
from lightkube import KubeConfig
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

COST = "controller.kubernetes.io/pod-deletion-cost"
EVERYTHING = ({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},)
_SINCE = datetime(2026, 1, 1, tzinfo=UTC)
_NAMESPACE = "cell"


@dataclass
class FakePod:
    name: str
    app: str
    number: int
    is_ready: bool = True
    is_terminating: bool = False
    annotations: dict[str, str] = field(default_factory=dict[str, str])
    status: dict[str, Any] = field(default_factory=dict[str, Any])

    def plain(self) -> dict[str, Any]:
        created = (_SINCE + timedelta(seconds=self.number)).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata: dict[str, Any] = {"name": self.name, "namespace": _NAMESPACE, "creationTimestamp": created}
        metadata |= {"labels": {"app": self.app}, "annotations": self.annotations}
        if self.is_terminating:
            metadata["deletionTimestamp"] = created
        conditions = [{"type": "Ready", "status": "True" if self.is_ready else "False"}]
        status = {"conditions": conditions} | self.status
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": []}, "status": status}


@dataclass
class FakeKubernetes:
    """What there is; tests change it as they like."""

    replicas: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """By kind in plural, and name."""
    pods: list[FakePod] = field(default_factory=list[FakePod])
    rules: Sequence[dict[str, Any]] = EVERYTHING
    before_update: Callable[[], None] = lambda: None
    """Runs before each replacement of a scale: somebody else who is quicker."""
    is_hanging: bool = False
    answers: Response | None = None
    """Given to everybody instead of the right one."""
    calls: list[str] = field(default_factory=list[str])
    in_progress: int = 0
    most_in_progress: int = 0
    _version: int = 1
    _made: int = 0

    def add(self, kind: str, name: str, replicas: int) -> None:
        """A workload with all its pods ready."""
        self.replicas[kind, name] = replicas
        for _ in range(replicas):
            self.start(name, is_ready=True)

    def start(self, name: str, *, is_ready: bool = False) -> FakePod:
        self._made += 1
        self.pods.append(FakePod(f"{name}-{self._made}", name, self._made, is_ready))
        return self.pods[-1]

    def edit(self, kind: str, name: str, replicas: int) -> None:
        """Somebody else scales."""
        self.replicas[kind, name] = replicas
        self._version += 1

    def reconcile(self) -> None:
        """Controllers start what is missing and end what is too much: by cost, then what is not ready."""
        for (_, name), wanted in self.replicas.items():
            here = [pod for pod in self.pods if pod.app == name and not pod.is_terminating]
            for _ in range(wanted - len(here)):
                self.start(name)
            ranked = sorted(here, key=lambda pod: (pod.is_ready, int(pod.annotations.get(COST, "0")), -pod.number))
            for pod in ranked[: max(len(here) - wanted, 0)]:
                pod.is_terminating = True

    # --- HTTP

    def app(self) -> Starlette:
        base = f"/apis/apps/v1/namespaces/{_NAMESPACE}/{{kind}}/{{name}}/scale"
        pods = f"/api/v1/namespaces/{_NAMESPACE}/pods"
        return Starlette(routes=[
            Route(base, self._serve("get", self._get_scale), methods=["GET"]),
            Route(base, self._serve("update", self._put_scale), methods=["PUT"]),
            Route(pods, self._serve("list", self._list_pods), methods=["GET"]),
            Route(pods + "/{name}", self._serve("patch", self._patch_pod), methods=["PATCH"]),
        ])  # fmt: skip

    def _serve(self, verb: str, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def served(request: Request) -> Response:
            self.in_progress += 1
            self.most_in_progress = max(self.most_in_progress, self.in_progress)
            try:
                kind, name = request.path_params.get("kind"), request.path_params.get("name", "")
                group, resource = ("apps", f"{kind}/scale") if kind else ("", "pods")
                self.calls.append(f"{verb} {resource} {name}".strip())
                if self.is_hanging:
                    while (await request.receive())["type"] != "http.disconnect":
                        pass
                    return Response()
                if self.answers is not None:
                    return self.answers
                if not any(_allows(rule, group, resource, verb, name) for rule in self.rules):
                    said = f'{resource} "{name}" is forbidden: User "planner" cannot {verb} resource "{resource}"'
                    return _status(403, "Forbidden", said)
                return await answer(request)
            finally:
                self.in_progress -= 1

        return served

    async def _get_scale(self, request: Request) -> Response:
        key = request.path_params["kind"], request.path_params["name"]
        if key not in self.replicas:
            return _status(404, "NotFound", f'{key[0]} "{key[1]}" not found')
        return JSONResponse(self._scale(*key))

    async def _put_scale(self, request: Request) -> Response:
        key = request.path_params["kind"], request.path_params["name"]
        self.before_update()
        given = await request.json()
        if given["metadata"]["resourceVersion"] != str(self._version):
            return _status(409, "Conflict", "the object has been modified; please apply your changes to the latest")
        self.edit(*key, given["spec"]["replicas"])
        return JSONResponse(self._scale(*key))

    def _scale(self, kind: str, name: str) -> dict[str, Any]:
        metadata = {"name": name, "namespace": _NAMESPACE, "resourceVersion": str(self._version)}
        here = len([pod for pod in self.pods if pod.app == name])
        return {
            "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata,
            "spec": {"replicas": self.replicas[kind, name]},
            "status": {"replicas": here, "selector": f"app={name}"},
        }  # fmt: skip

    async def _list_pods(self, request: Request) -> Response:
        label, _, value = request.query_params["labelSelector"].partition("=")
        assert label == "app"
        items = [pod.plain() for pod in self.pods if pod.app == value]
        return JSONResponse({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})

    async def _patch_pod(self, request: Request) -> Response:
        found = [pod for pod in self.pods if pod.name == request.path_params["name"]]
        if not found:
            return _status(404, "NotFound", "pod not found")
        for name, value in (await request.json())["metadata"]["annotations"].items():
            found[0].annotations.pop(name, None)
            if value is not None:
                found[0].annotations[name] = value
        return JSONResponse(found[0].plain())


def _allows(rule: dict[str, Any], group: str, resource: str, verb: str, name: str) -> bool:
    def has(key: str, value: str) -> bool:
        return "*" in rule[key] or value in rule[key]

    names = rule.get("resourceNames")
    return has("apiGroups", group) and has("resources", resource) and has("verbs", verb) and (
        not names or name in names
    )  # fmt: skip


def _status(code: int, reason: str, message: str) -> Response:
    plain = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason}
    return JSONResponse(plain | {"code": code}, code)


def config_for(port: int) -> KubeConfig:
    """How to reach the server on that port."""
    return KubeConfig.from_dict(json.loads(kubeconfig_for(port)))


def kubeconfig_for(port: int) -> str:
    """Likewise as a file's text."""
    context = {"cluster": "fake", "user": "planner", "namespace": _NAMESPACE}
    return json.dumps({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "planner", "user": {"token": "some-token"}}],
        "contexts": [{"name": "fake", "context": context}],
        "current-context": "fake",
    })  # fmt: skip


@asynccontextmanager
async def serving(cluster: FakeKubernetes) -> AsyncIterator[int]:
    """Serve on a free port, which is told."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(cluster.app(), log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()
