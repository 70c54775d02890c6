"""The command line of `armature`: what each command takes, and the options that it makes of it."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from armature.cli.access import add_access
from armature.cli.options import SERVICES, CellOptions, UsageError, parse_settings
from armature.runtime.policies import OFFLOAD_POLICIES, PLANNER_POLICIES, shipped_policies

DEFAULTS = CellOptions()
_SECONDS: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
EXAMPLES = f"""examples:
  armature up                                        the demo model: 1 prefill worker, 2 decode workers, port 8000
  armature up --model ~/models/qwen3 --decode 4      a model of yours, four decode workers
  armature up --prefill 0 --decode 0 --aggregated 2  prompts are computed where tokens are produced
  armature up --transport grpc                       KV blocks move over gRPC, to compare with NIXL
  armature up --set router.log_level=debug           any setting, as `python -m services.router --help` lists them

Services for --set: {", ".join(SERVICES)}, and * for all.
A crashed process is started again. Logs are in STATE_DIR/NAMESPACE/logs.
"""

Add = Callable[..., argparse.Action]


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def add_place(parser: argparse.ArgumentParser) -> None:
    """Options that name a cell."""
    group = parser.add_argument_group("which cell")
    group.add_argument("--namespace", default=DEFAULTS.namespace, help="the cell's name (default: %(default)s)")
    text = "folder with the state of all cells (default: %(default)s)"
    group.add_argument("--state-dir", type=Path, default=DEFAULTS.state_dir, metavar="DIR", help=text)


def add_up(parser: argparse.ArgumentParser) -> None:
    """Options of `armature up`."""
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    _add_model(parser.add_argument_group("model").add_argument)
    _add_shape(parser.add_argument_group("shape").add_argument)
    _add_offload(parser.add_argument_group("offload").add_argument)
    _add_planner(parser.add_argument_group("planner").add_argument)
    _add_network(parser.add_argument_group("network").add_argument)
    _add_process(parser.add_argument_group("processes").add_argument)


def _add_model(add: Add) -> None:
    text = "model folder in Hugging Face format (default: the demo model that comes with the package)"
    add("--model", type=Path, default=DEFAULTS.model, metavar="DIR", help=text)
    add("--model-name", default="", metavar="NAME", help="what clients call it (default: the folder's name, or demo)")
    text = "torch computes; simulated only pretends, for trying the services (default: %(default)s)"
    add("--engine", choices=("torch", "simulated"), default=DEFAULTS.engine, help=text)
    text = "of weights and KV cache (default: the model's)"
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="", help=text)
    text = "each worker's KV cache; raise it for long prompts or many requests (default: the worker's, 256 MiB)"
    add("--kv-cache-bytes", type=int, default=DEFAULTS.kv_cache_bytes, metavar="BYTES", help=text)


def _add_shape(add: Add) -> None:
    text = "workers that only compute prompts (default: %(default)s)"
    add("--prefill", type=int, default=DEFAULTS.prefill, metavar="N", help=text)
    add(
        "--decode",
        type=int,
        default=DEFAULTS.decode,
        metavar="N",
        help="workers that produce tokens (default: %(default)s)",
    )
    text = "workers that do both and ask no other (default: %(default)s)"
    add("--aggregated", type=int, default=DEFAULTS.aggregated, metavar="N", help=text)
    text = "processes of the gateway, which share its port; raise it when one core is not enough (default: %(default)s)"
    add("--gateway-processes", type=int, default=DEFAULTS.gateway_processes, metavar="N", help=text)
    text = "how KV blocks move between workers (default: %(default)s)"
    add("--transport", choices=("nixl", "grpc"), default=DEFAULTS.transport, help=text)
    text = "processor threads of each worker (default: the cores shared out)"
    add("--threads", type=int, default=DEFAULTS.threads, metavar="N", help=text)
    text = f"how requests are placed: {', '.join(shipped_policies())}, or a YAML file (default: the router's)"
    add("--policy", default=DEFAULTS.policy, metavar="NAME", help=text)


def _add_offload(add: Add) -> None:
    text = "keep no KV blocks beyond the workers' own memory (default: in host memory and on disk)"
    add("--no-offload", dest="offload", action="store_false", help=text)
    text = "host memory for KV blocks; as much as the machine can spare (default: kv-offload's, 1 GiB)"
    add("--offload-host-bytes", type=int, default=DEFAULTS.offload_host_bytes, metavar="BYTES", help=text)
    text = "disk for KV blocks, in the cell's state (default: kv-offload's, 8 GiB)"
    add("--offload-disk-bytes", type=int, default=DEFAULTS.offload_disk_bytes, metavar="BYTES", help=text)
    text = "room for KV blocks in the cell's Valkey, which is memory too, or in --offload-remote (default: none)"
    add("--offload-remote-bytes", type=int, default=DEFAULTS.offload_remote_bytes, metavar="BYTES", help=text)
    text = "s3://bucket[/prefix], or another redis://, in place of the cell's Valkey; credentials come from "
    text += "ARMATURE_S3_ACCESS_KEY and ARMATURE_S3_SECRET_KEY or as AWS's tools find them, a store that is not AWS's "
    text += "from --set kv-offload.s3_endpoint=https://..."
    add("--offload-remote", default=DEFAULTS.offload_remote, metavar="URL", help=text)
    text = "what these take in and let go: " + ", ".join(OFFLOAD_POLICIES.names()) + ", or a YAML file"
    add("--offload-policy", default=DEFAULTS.offload_policy, metavar="NAME", help=text)


def _add_planner(add: Add) -> None:
    text = "hold targets by starting and draining workers (local), by changing their roles only (role), or tell what "
    text += "would be done (advice); `armature planner` shows it (default: workers stay as they were started)"
    add("--planner", choices=("local", "role", "advice"), default=DEFAULTS.planner, help=text)
    text = "its processes; with 2 one takes over when the other dies (default: %(default)s)"
    add("--planners", type=int, default=DEFAULTS.planners, metavar="N", help=text)
    text = f"targets, limits and patience: {', '.join(PLANNER_POLICIES.names())}, or a YAML file"
    add("--planner-policy", default=DEFAULTS.planner_policy, metavar="NAME", help=text)
    for flag, text in (("--min-workers", "it always leaves so many"), ("--max-workers", "it never wants more")):
        add(flag, type=int, default=0, metavar="N", help=f"{text} (default: the policy's)")
    for flag, what in (("--ttft-s", "first token"), ("--itl-s", "token after a token")):
        add(flag, type=float, default=0.0, metavar="SECONDS", help=f"its target for the {what} (default: the policy's)")


def _add_network(add: Add) -> None:
    text = "where HTTP listens; 0.0.0.0 lets other machines in (default: %(default)s)"
    add("--host", default=DEFAULTS.host, help=text)
    text = "port of the OpenAI API; 0 takes a free one (default: %(default)s)"
    add("--http-port", type=int, default=DEFAULTS.http_port, metavar="PORT", help=text)
    add("--etcd", default="", metavar="HOST:PORT", help="use an etcd that runs already (default: start one)")
    add("--no-valkey", dest="valkey", action="store_false", help="start no Valkey")
    text = "OTLP gRPC collector for traces (default: no tracing)"
    add("--otlp-endpoint", default="", metavar="HOST:PORT", help=text)


def add_down(parser: argparse.ArgumentParser) -> None:
    """Options of `armature down`."""
    text = "kill the cell after this long (default: %(default)s)"
    parser.add_argument("--timeout", default=60.0, help=text, **_SECONDS)


def _add_process(add: Add) -> None:
    add("--log-dir", type=Path, metavar="DIR", help="where logs go (default: in the cell's state)")
    text = "give up on a service that is not ready after this long (default: %(default)s)"
    add("--start-timeout", default=DEFAULTS.start_timeout_s, dest="start_timeout_s", help=text, **_SECONDS)
    text = "how long a stopping service may finish its requests (default: %(default)s)"
    add("--drain-timeout", default=DEFAULTS.drain_timeout_s, dest="drain_timeout_s", help=text, **_SECONDS)
    text = "pass any setting to a service, or to all with *; may be repeated"
    add("--set", dest="settings", action="append", default=[], metavar="SERVICE.KEY=VALUE", help=text)


def up_options(args: argparse.Namespace) -> CellOptions:
    """What `armature up` was told.

    Raises:
        UsageError: a --set is wrong.
    """
    given: dict[str, Any] = {key: value for key, value in vars(args).items() if key in CellOptions.__dataclass_fields__}
    given["settings"] = parse_settings(args.settings)
    return CellOptions(**given)


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Options of `armature chat`."""
    parser.add_argument(
        "prompt", nargs="?", default="", metavar="PROMPT", help="one question (default: a conversation)"
    )
    parser.add_argument("--url", default="", help="of the gateway (default: that of the running cell)")
    add_access(parser)
    parser.add_argument("--model", default="", metavar="NAME", help="model to ask (default: the first)")
    parser.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="longest answer (default: %(default)s)"
    )
    text = "0 always takes the likeliest token (default: %(default)s)"
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help=text)
