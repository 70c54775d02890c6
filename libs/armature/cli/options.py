"""What `armature up` can be told."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from armature.engines.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_PATH
from armature.routing.parts import PolicyError
from armature.runtime.policies import load_offload_policy, load_planner_policy, load_policy

SERVICES = ("kv-index", "router", "kv-offload", "prefill-worker", "decode-worker", "gateway", "planner")
"""Kinds of service that a cell is made of, in the order in which they are listed."""


class UsageError(Exception):
    """The command line asks for something impossible; the message is one line that says what to write instead."""


@dataclass(frozen=True, kw_only=True)
class CellOptions:
    """A cell as the user wants it."""

    namespace: str = "default"
    state_dir: Path = Path(".armature")
    model: Path = DEMO_MODEL_PATH
    model_name: str = ""
    """Empty: the demo model's name, else the directory's."""
    prefill: int = 1
    decode: int = 2
    aggregated: int = 0
    gateway_processes: int = 1
    host: str = "127.0.0.1"
    http_port: int = 8000
    engine: str = "torch"
    transport: str = "nixl"
    dtype: str = ""
    kv_cache_bytes: int = 0
    """Per worker; 0 leaves it to the worker."""
    threads: int = 0
    """Per worker; 0 shares the cores out."""
    policy: str = ""
    """The router's, a name or a YAML file; empty leaves it to the router."""
    offload: bool = True
    """Whether KV blocks that leave the workers' memory are kept."""
    offload_host_bytes: int = 0
    """0 leaves it to kv-offload; likewise the next."""
    offload_disk_bytes: int = 0
    offload_remote_bytes: int = 0
    """0: none."""
    offload_remote: str = ""
    """s3://bucket[/prefix] or redis://host:port; empty: the cell's Valkey."""
    offload_policy: str = ""
    """A name or a YAML file; empty leaves it to kv-offload."""
    planner: str = ""
    """Its connector; empty: the fleet stays as it was started."""
    planners: int = 1
    """Processes: one leads, the others stand by."""
    planner_policy: str = ""
    """A name or a YAML file; empty leaves it to the planner. So do zeros for what follows."""
    min_workers: int = 0
    max_workers: int = 0
    ttft_s: float = 0.0
    itl_s: float = 0.0
    log_dir: Path | None = None
    otlp_endpoint: str = ""
    etcd: str = ""
    """Endpoints of an etcd that runs already; empty starts one."""
    valkey: bool = True
    start_timeout_s: float = 180.0
    drain_timeout_s: float = 10.0
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    """More settings by kind of service, `*` for all."""

    @property
    def served_name(self) -> str:
        if self.model_name:
            return self.model_name
        return DEMO_MODEL_NAME if self.model == DEMO_MODEL_PATH else self.model.resolve().name

    @property
    def has_admin_key(self) -> bool:
        """Whether the gateway is told one, here or by the environment that it inherits."""
        told = (self.settings.get(service, {}).get("admin_key") for service in ("gateway", "*"))
        return any(told) or bool(os.environ.get("ARMATURE_ADMIN_KEY"))

    @property
    def num_workers(self) -> int:
        return self.prefill + self.decode + self.aggregated

    @property
    def directory(self) -> Path:
        """Where this cell keeps its state."""
        return self.state_dir / self.namespace


def check(options: CellOptions) -> None:
    """Refuse what can't work before anything is started.

    Raises:
        UsageError: with what to write instead.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", options.namespace, re.ASCII):
        raise UsageError("--namespace consists of letters, digits, dots, dashes and underscores")
    if not 0 <= options.http_port <= 65535:
        raise UsageError(f"--http-port {options.http_port} is no port: pass 0 (takes a free one) to 65535")
    if min(options.start_timeout_s, options.drain_timeout_s) <= 0:
        raise UsageError("--start-timeout and --drain-timeout are seconds: above 0")
    if min(options.threads, options.kv_cache_bytes) < 0:
        raise UsageError("--threads and --kv-cache-bytes must be above 0; leave them out for the default")
    _check_policies(options)
    _check_offload(options)
    _check_planner(options)
    if options.gateway_processes < 1:
        raise UsageError("--gateway-processes counts processes: 1 or more")
    if min(options.prefill, options.decode, options.aggregated) < 0:
        raise UsageError("--prefill, --decode and --aggregated count workers: 0 or more")
    if options.decode + options.aggregated == 0:
        raise UsageError("nobody would produce tokens: pass --decode 1 or --aggregated 1")
    if options.prefill and not options.decode:
        raise UsageError("prefill workers serve decode workers only: pass --decode 1, or --prefill 0")
    if not options.model.is_dir():
        raise UsageError(f"no model directory {options.model}: --model takes a folder with config.json and weights")
    for name in ("config.json", "tokenizer.json"):
        if not (options.model / name).is_file():
            raise UsageError(f"{options.model} has no {name}: --model takes a model folder in Hugging Face format")
    if options.engine == "torch" and not any(options.model.glob("*.safetensors")):
        raise UsageError(
            f"{options.model} has no *.safetensors: save the model with save_pretrained(), or see --engine"
        )


def _check_policies(options: CellOptions) -> None:
    given = {
        "--policy": (options.policy, load_policy),
        "--offload-policy": (options.offload_policy, load_offload_policy),
        "--planner-policy": (options.planner_policy, load_planner_policy),
    }
    for flag, (policy, load) in given.items():
        try:
            if policy:
                load(policy)
        except PolicyError as error:
            raise UsageError(f"{flag}: {error}") from error


def _check_offload(options: CellOptions) -> None:
    sizes = (options.offload_host_bytes, options.offload_disk_bytes, options.offload_remote_bytes)
    if min(sizes) < 0:
        raise UsageError("--offload-host-bytes, --offload-disk-bytes and --offload-remote-bytes must not be negative")
    if not options.offload and (any(sizes) or options.offload_policy or options.offload_remote):
        raise UsageError("--no-offload keeps nothing: leave out the other --offload options, or this one")
    if options.offload_remote and not options.offload_remote.startswith(("s3://", "redis://", "rediss://", "unix://")):
        raise UsageError("--offload-remote takes s3://bucket, s3://bucket/prefix or redis://host:port")
    if options.offload_remote and not options.offload_remote_bytes:
        raise UsageError("--offload-remote needs to know how much room there is: pass --offload-remote-bytes")
    if options.offload_remote_bytes and not (options.offload_remote or options.valkey):
        raise UsageError(
            "--offload-remote-bytes needs the cell's Valkey: leave out --no-valkey, or pass --offload-remote s3://..."
        )


def _check_planner(options: CellOptions) -> None:
    targets = (options.min_workers, options.max_workers, options.ttft_s, options.itl_s)
    if not min(targets) >= 0:
        raise UsageError("--min-workers, --max-workers, --ttft-s and --itl-s must not be negative")
    if options.planners < 1:
        raise UsageError("--planners counts processes: 1 or more")
    if not options.planner and (any(targets) or options.planner_policy or options.planners > 1):
        raise UsageError("nobody would look at targets, limits and --planners: pass --planner local, role or advice")
    if options.max_workers and max(options.min_workers, 1) > options.max_workers:
        raise UsageError(f"--min-workers {options.min_workers} is above --max-workers {options.max_workers}")


def parse_settings(items: list[str]) -> dict[str, dict[str, str]]:
    """`router.overlap=2` becomes `{"router": {"overlap": "2"}}`; `*` stands for every service.

    Raises:
        UsageError: not SERVICE.KEY=VALUE, or no such service.
    """
    settings: dict[str, dict[str, str]] = {}
    for item in items:
        name, is_complete, value = item.partition("=")
        service, has_key, key = name.partition(".")
        if not (is_complete and has_key and key):
            raise UsageError(f"--set {item}: write SERVICE.KEY=VALUE, for example router.log_level=debug")
        kind = service.replace("_", "-")
        if kind != "*" and kind not in SERVICES:
            close = get_close_matches(kind, SERVICES, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(SERVICES)} and *"
            raise UsageError(f"--set {item}: no service is called {service!r}; {hint}")
        settings.setdefault(kind, {})[key.replace("-", "_")] = value
    return settings
