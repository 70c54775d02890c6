"""The options that say what a simulated cell is."""

import argparse

from armature.cli.lower_tiers import add_speeds, shapes_of
from armature.cli.options import UsageError
from armature.performance.faster import Faster
from armature.performance.presets import PRESETS, Preset
from armature.planning.fleet import WorkerKind
from armature.routing.parts import PolicyError
from armature.runtime.policies import OFFLOAD_POLICIES, load_offload_policy
from armature.sim.cell import CellShape, Failure
from armature.sim.worker import WorkerShape

_DEFAULT_PRESET = "qwen3-32b-tp2-h200"
_DEFAULT_WORKERS = 8
_DEFAULT_OFFLOAD_POLICY = "all"


def add_cell(command: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    _add_workers(command)
    _add_lower_tiers(command)
    add = command.add_argument_group("between them").add_argument
    text = "of each worker, in and out, for KV blocks (default: %(default)g)"
    add("--link-bytes-per-s", type=float, default=40e9, metavar="N", help=text)
    text = "read prefixes from other workers and from what other nodes keep, where that is quicker"
    add("--pull", action="store_true", help=text)
    text = "requests go to so many routers in turn (default: %(default)s)"
    add("--routers", type=int, default=1, metavar="N", help=text)
    text = "until a router knows what another has placed (default: they tell each other nothing)"
    add("--share-lag-s", type=float, default=None, metavar="SECONDS", help=text)
    text = "delay of cache events on their way to the routers (default: %(default)s)"
    add("--event-lag-s", type=float, default=0.0, metavar="SECONDS", help=text)
    text = "between load reports of a worker; 0: one after every step (default: %(default)s)"
    add("--report-interval-s", type=float, default=0.0, metavar="SECONDS", help=text)
    text = "a worker dies at that time, and is back after DOWN seconds, or never; can be repeated"
    add("--fail", action="append", default=[], metavar="WORKER@S[+DOWN]", help=text)
    text = "until routers know of a death (default: %(default)s)"
    add("--detection-s", type=float, default=10.0, metavar="SECONDS", help=text)


def _add_workers(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("workers").add_argument
    text = f"that do prefill and decode, called w0 and so on (default: {_DEFAULT_WORKERS}, or 0 if there are others)"
    add("--workers", type=int, default=None, metavar="N", help=text)
    add("--prefill", type=int, default=0, metavar="N", help="that do prefill only: p0 and so on (default: 0)")
    add("--decode", type=int, default=0, metavar="N", help="that do decode, or both: d0 and so on (default: 0)")
    text = f"model and GPUs of each worker: {', '.join(PRESETS)} (default: %(default)s)"
    add("--preset", default=_DEFAULT_PRESET, metavar="NAME", help=text)
    text = "of every worker, times what the preset says: 0.25 for GPUs a quarter as fast (default: 1)"
    add("--worker-speed", type=float, default=1.0, metavar="X", help=text)
    add("--blocks", type=int, default=0, metavar="N", help="KV blocks of a worker (default: the preset's memory)")
    text = "requests in one engine step (default: %(default)s)"
    add("--max-num-seqs", type=int, default=256, metavar="N", help=text)
    text = "tokens in one engine step (default: %(default)s)"
    add("--max-num-batched-tokens", type=int, default=8192, metavar="N", help=text)


def _add_lower_tiers(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("below the devices of a node").add_argument
    text = "workers that share a node's tiers (default: %(default)s)"
    add("--workers-per-node", type=int, default=8, metavar="N", help=text)
    add("--host-blocks", type=int, default=0, metavar="N", help="blocks of host memory, G2 (default: none)")
    add("--disk-blocks", type=int, default=0, metavar="N", help="likewise disk, G3; takes host memory, too")
    add("--remote-blocks", type=int, default=0, metavar="N", help="likewise remote store, G4")
    text = f"what is kept: {', '.join(OFFLOAD_POLICIES.names())}, or a YAML file (default: %(default)s)"
    add("--offload-policy", default=_DEFAULT_OFFLOAD_POLICY, metavar="NAME", help=text)
    add_speeds(add)


def cell_of(args: argparse.Namespace, block_size: int) -> CellShape:
    """The cell.

    Raises:
        UsageError, ValueError: it makes no sense.
    """
    preset = _preset(args)
    shape = WorkerShape(
        block_size=block_size,
        num_blocks=args.blocks or preset.kv_tokens // block_size,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
    )
    sizes = args.host_blocks, args.disk_blocks, args.remote_blocks
    try:
        policy = load_offload_policy(args.offload_policy)
    except PolicyError as error:
        raise UsageError(f"--offload-policy: {error}") from error
    default = 0 if args.prefill or args.decode else _DEFAULT_WORKERS
    return CellShape(
        num_workers=default if args.workers is None else args.workers,
        num_prefill=args.prefill,
        num_decode=args.decode,
        worker=shape,
        performance=preset.performance if args.worker_speed == 1 else Faster(preset.performance, args.worker_speed),
        model=preset.model,
        block_bytes=block_size * preset.token_bytes,
        link_bytes_per_s=args.link_bytes_per_s,
        workers_per_node=args.workers_per_node,
        tier_shapes=shapes_of(args, sizes, block_size * preset.token_bytes),
        offload_policy=policy,
        can_pull=args.pull,
        event_lag_s=args.event_lag_s,
        report_interval_s=args.report_interval_s,
        share_lag_s=args.share_lag_s,
        detection_s=args.detection_s,
        failures=tuple(_failure(word) for word in args.fail),
    )


def worker_kind_of(args: argparse.Namespace, cell: CellShape) -> WorkerKind:
    """One worker of the cell, as a planner knows it."""
    preset, shape = _preset(args), cell.worker
    return WorkerKind(
        performance=cell.performance,
        kv_tokens=shape.num_blocks * shape.block_size,
        max_num_seqs=shape.max_num_seqs,
        max_num_batched_tokens=shape.max_num_batched_tokens,
        gpus=preset.gpus,
    )


def _preset(args: argparse.Namespace) -> Preset:
    preset = PRESETS.get(args.preset)
    if preset is None:
        raise UsageError(f"there is no preset {args.preset!r}; there are {', '.join(PRESETS)}")
    return preset


def _failure(word: str) -> Failure:
    worker_id, has_time, times = word.rpartition("@")
    at_s, has_end, down_s = times.partition("+")
    try:
        if not has_time:
            raise ValueError(word)
        return Failure(worker_id, float(at_s), float(down_s) if has_end else float("inf"))
    except ValueError as error:
        raise UsageError(f"--fail {word}: write WORKER@SECONDS or WORKER@SECONDS+DOWN, such as w0@60+30") from error
