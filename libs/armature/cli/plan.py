"""What a cell consists of: which services, in which order, with which settings. Decides, starts nothing."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from armature.cli.options import CellOptions
from armature.v1.common_pb2 import ROLE_AGGREGATED, ROLE_DECODE, ROLE_PREFILL, ROLE_UNSPECIFIED, Role


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known only once the machine has been looked at."""

    etcd: str
    """Endpoints, a comma list of host:port."""
    cluster_secret: str
    cores: int
    redis: str = ""
    """URL of the cell's Valkey or Redis; empty: there is none."""
    control: str = ""
    """Where a planner may start and stop workers; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One process to run."""

    name: str
    """Unique in the cell: `decode-worker-1`."""
    kind: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    role: "Role.ValueType" = ROLE_UNSPECIFIED
    """Of workers, as they are started."""


@dataclass(frozen=True, slots=True)
class CellPlan:
    """Groups of services. All may start at once; they stop group by group, the last group first."""

    groups: tuple[tuple[ServicePlan, ...], ...]

    @property
    def services(self) -> list[ServicePlan]:
        return [service for group in self.groups for service in group]


def plan_cell(options: CellOptions, around: Surroundings) -> CellPlan:
    """Everything but etcd and Valkey, which must run before their addresses can be told to anyone."""
    own = {"http_host": options.host, "http_port": str(options.http_port), "redis": around.redis}
    if options.gateway_processes > 1:
        own["processes"] = str(options.gateway_processes)
    gateway = _service(options, around, "gateway", None, **own)
    control = (
        _service(options, around, "kv-index", redis=around.redis),
        _service(options, around, "router", policy=_policy(options.policy), redis=around.redis),
        *_offload(options, around),
    )
    return CellPlan((control, tuple(_workers(options, around)), (gateway, *_planners(options, around))))


def _planners(options: CellOptions, around: Surroundings) -> list[ServicePlan]:
    """Stopped before the workers, which it would else believe to have crashed."""
    if not options.planner:
        return []
    own = {
        "connector": options.planner,
        "control": around.control,
        "policy": _policy(options.planner_policy),
        "model": options.served_name,
        "min_workers": str(options.min_workers or ""),
        "max_workers": str(options.max_workers or ""),
        "ttft_s": f"{options.ttft_s:g}" if options.ttft_s else "",
        "itl_s": f"{options.itl_s:g}" if options.itl_s else "",
    }
    indices = range(options.planners) if options.planners > 1 else (None,)
    return [_service(options, around, "planner", index, **own) for index in indices]


def _offload(options: CellOptions, around: Surroundings) -> list[ServicePlan]:
    """One for the machine, with its disk store in the cell's state."""
    if not options.offload:
        return []
    own = {
        "host_bytes": str(options.offload_host_bytes or ""),
        "disk_dir": str((options.directory / "kv").resolve()),
        "disk_bytes": str(options.offload_disk_bytes or ""),
        "remote_bytes": str(options.offload_remote_bytes or ""),
        "remote": options.offload_remote,
        "redis": around.redis if options.offload_remote_bytes and not options.offload_remote else "",
        "policy": _policy(options.offload_policy),
        "transport": options.transport,
    }
    return [_service(options, around, "kv-offload", None, **own)]


def _policy(policy: str) -> str:
    """A name as it is, a file by its whole path."""
    path = Path(policy)
    return str(path.resolve()) if policy and path.is_file() else policy


def threads_per_worker(options: CellOptions, cores: int) -> int:
    """Cores shared out among the workers, since more threads than cores slow every one of them down."""
    return options.threads or max(1, cores // options.num_workers)


def _workers(options: CellOptions, around: Surroundings) -> list[ServicePlan]:
    planned = [plan_worker(options, around, ROLE_PREFILL, i) for i in range(options.prefill)]
    planned += [plan_worker(options, around, ROLE_DECODE, i) for i in range(options.decode)]
    last = options.decode + options.aggregated
    return planned + [plan_worker(options, around, ROLE_AGGREGATED, i) for i in range(options.decode, last)]


def plan_worker(options: CellOptions, around: Surroundings, role: "Role.ValueType", index: int) -> ServicePlan:
    """A worker of a role; `index` tells it from others of its kind."""
    threads = threads_per_worker(options, around.cores)
    own = {
        "model": str(options.model.resolve()),
        "model_name": options.served_name,
        "engine": options.engine,
        "dtype": options.dtype,
        "kv_cache_bytes": str(options.kv_cache_bytes or ""),
        "threads": str(threads),
        "transport": options.transport,
        "offload": "true" if options.offload else "",
        "role": "aggregated" if role == ROLE_AGGREGATED else "",
    }
    kind = "prefill-worker" if role == ROLE_PREFILL else "decode-worker"
    return replace(_service(options, around, kind, index, **own), role=role)


def _service(
    options: CellOptions, around: Surroundings, kind: str, index: int | None = None, **own: str
) -> ServicePlan:
    common = {
        "namespace": options.namespace,
        "etcd": around.etcd,
        "port": "0",
        "metrics_port": "0",
        "drain_timeout_s": f"{options.drain_timeout_s:g}",
        "otlp_endpoint": options.otlp_endpoint,
    }
    wanted = {**options.settings.get("*", {}), **options.settings.get(kind, {})}
    # An empty value means the service's own default.
    settings = {key: value for key, value in {**common, **own}.items() if value} | wanted
    # The environment, unlike a command line, is hidden from other users of the machine.
    env = {"ARMATURE_CLUSTER_SECRET": around.cluster_secret, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return ServicePlan(kind if index is None else f"{kind}-{index}", kind, _command(kind, settings), env)


def _command(kind: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    flags = (_flag(key.replace("_", "-"), value) for key, value in settings.items())
    # -P: a folder `services` where the user happens to be is not ours.
    return (sys.executable, "-P", "-m", f"services.{kind.replace('-', '_')}", *flags)


def _flag(name: str, value: str) -> str:
    if value in ("true", "false"):
        return f"--{name}" if value == "true" else f"--no-{name}"
    return f"--{name}={value}"


def log_path(options: CellOptions, name: str) -> Path:
    """Where a process's output goes."""
    return (options.log_dir or options.directory / "logs") / f"{name}.log"
