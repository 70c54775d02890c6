"""`armature planner`: what the planner of a running cell sees, wants and has done, and what it is told."""

import argparse
import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.console import Console

from armature.cli.arguments import add_place
from armature.cli.attach import find_cell
from armature.cli.show import plain
from armature.cli.state import CellState
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import StartError
from armature.v1 import planner_pb2 as pb
from armature.v1.planner_pb2_grpc import PlannerStub

if TYPE_CHECKING:
    from armature.v1.planner_pb2_grpc import PlannerAsyncStub

TIMEOUT_S = 5.0
REHEARSAL_TIMEOUT_S = 120.0
_TARGETS = (
    ("--ttft-s", float, "SECONDS", "for the first token"),
    ("--itl-s", float, "SECONDS", "for each token after it"),
    ("--quantile", float, "SHARE", "share of requests for which these hold, such as 0.95"),
    ("--min-workers", int, "N", "it always leaves so many; 0: the last go after a while without requests"),
    ("--max-workers", int, "N", "it never wants more"),
    ("--max-gpus", int, "N", "of all workers together; 0: no such limit"),
)

Answer = TypeVar("Answer", bound=Message)


def add_planner(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Options of `armature planner`."""
    text = "see what sizes the fleet, and tell it what to hold"
    about = f"{text[0].upper()}{text[1:]}. A cell has a planner if it was started with `armature up --planner`."
    command = add_parser("planner", help=text, description=about, allow_abbrev=False)
    actions = command.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, run, add_options, help_text in (
        ("status", _status, None, "targets, workers, traffic and the plan with its reason"),
        ("watch", _watch, None, "the same after every step, until Ctrl-C"),
        ("rehearse", _rehearse, _add_counts, "replay the last hour on another fleet and on this one"),
        ("set-target", _set, _add_targets, "change what is promised and allowed, or pause"),
        ("log", _log, _add_limit, "what was done, and why"),
    ):
        action = actions.add_parser(name, help=help_text, allow_abbrev=False)
        action.set_defaults(run=run)
        if add_options is not None:
            add_options(action)
        action.add_argument("--json", action="store_true", help="print JSON")
        add_place(action)


def _add_counts(action: argparse.ArgumentParser) -> None:
    for role in ("aggregated", "prefill", "decode"):
        action.add_argument(
            f"--{role}", type=int, default=0, metavar="N", help="so many workers (default: as is planned)"
        )


def _add_targets(action: argparse.ArgumentParser) -> None:
    for flag, kind, metavar, text in _TARGETS:
        action.add_argument(flag, type=kind, default=None, metavar=metavar, help=text)
    text = "first forget all that was set: the planner's policy and flags count again, then what is set here"
    action.add_argument("--reset", action="store_true", help=text)
    pausing = action.add_mutually_exclusive_group()
    text = "make plans, but don't carry them out"
    pausing.add_argument("--pause", dest="is_paused", action="store_const", const=True, help=text)
    pausing.add_argument("--resume", dest="is_paused", action="store_const", const=False, help="carry them out again")


def _add_limit(action: argparse.ArgumentParser) -> None:
    action.add_argument("--limit", type=int, default=20, metavar="N", help="latest entries (default: %(default)s)")


# --- actions


def _status(args: argparse.Namespace, console: Console) -> int:
    status = _ask(args, lambda stub: stub.GetStatus(pb.StatusRequest(), timeout=TIMEOUT_S))
    _print(args, console, status, status_lines(status))
    return 0


def _watch(args: argparse.Namespace, console: Console) -> int:
    async def watch() -> None:
        async with _planner(find_cell(args.state_dir / args.namespace)) as stub:
            call = stub.WatchPlan(pb.WatchPlanRequest())
            while isinstance(status := await call.read(), pb.PlannerStatus):
                _print(args, console, status, ["", *status_lines(status)])

    asyncio.run(watch())
    return 0


def _rehearse(args: argparse.Namespace, console: Console) -> int:
    counts = pb.WorkerCounts(aggregated=args.aggregated, prefill=args.prefill, decode=args.decode)
    request = pb.RehearseRequest(counts=counts if counts.ByteSize() else None)
    told = _ask(args, lambda stub: stub.Rehearse(request, timeout=REHEARSAL_TIMEOUT_S))
    what = f"{counts_text(told.counts)}: {told.num_requests} requests at {told.pace:.2f} times their pace"
    ends = f"targets hold in {told.attained:.1%} of windows, in {told.attained_now:.1%} with the fleet as it is"
    _print(args, console, told, [f"{what}; {told.problem or ends}"])
    return 0


def _set(args: argparse.Namespace, console: Console) -> int:
    names = [flag[2:].replace("-", "_") for flag, *_ in _TARGETS] + ["is_paused"]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    request = pb.SetTargetsRequest(reset=args.reset, **given)
    told = _ask(args, lambda stub: stub.SetTargets(request, timeout=TIMEOUT_S))
    _print(args, console, told, [targets_text(told.targets)])
    return 0


def _log(args: argparse.Namespace, console: Console) -> int:
    told = _ask(args, lambda stub: stub.ListLog(pb.ListLogRequest(limit=max(args.limit, 0)), timeout=TIMEOUT_S))
    lines = [line for entry in told.entries for line in entry_lines(entry)]
    _print(args, console, told, lines or ["nothing has been done yet"])
    return 0


# --- asking


def _ask(args: argparse.Namespace, call: Callable[["PlannerAsyncStub"], Awaitable[Answer]]) -> Answer:
    async def ask() -> Answer:
        async with _planner(find_cell(args.state_dir / args.namespace)) as stub:
            return await call(stub)

    return asyncio.run(ask())


@asynccontextmanager
async def _planner(state: CellState) -> "AsyncGenerator[PlannerAsyncStub]":
    """Any of the cell's planners that answers: all of them know the same.

    Raises:
        StartError: there is none, none answers, or it refuses.
    """
    addresses = [process.address for process in state.processes if process.kind == "planner" and process.address]
    if not addresses:
        raise StartError("the cell has no planner: start it with `armature up --planner local`, role or advice")
    channels = ChannelPool(state.tls)
    try:
        for address in addresses[:-1]:
            stub = PlannerStub(channels.get(address))
            try:
                await stub.GetStatus(pb.StatusRequest(), timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError:
                continue
            break
        else:
            stub = PlannerStub(channels.get(addresses[-1]))
        yield stub
    except grpc.aio.AioRpcError as error:
        raise StartError(f"the planner: {error.details() or error.code().name}") from error
    finally:
        await channels.close()


# --- telling


def _print(args: argparse.Namespace, console: Console, message: Message, lines: Sequence[str]) -> None:
    if args.json:
        print(MessageToJson(message, preserving_proto_field_name=True), flush=True)
    else:
        plain(console, lines)


def status_lines(status: pb.PlannerStatus) -> list[str]:
    """How things stand, in words."""
    fleet, traffic, plan = status.fleet, status.traffic, status.plan
    role = "leads" if status.leader == status.planner else f"stands by for {status.leader or 'nobody'}"
    lines = [
        f"{status.planner} {role}; model {status.model or '-'}, policy {status.policy}, connector {status.connector}",
        f"targets   {targets_text(status.targets)}",
        f"workers   {counts_text(fleet.ready)} ready, {counts_text(fleet.starting)} starting, "
        f"{fleet.draining} draining; wanted {counts_text(fleet.wanted)}",
    ]
    if status.HasField("traffic"):
        lines.append(
            f"requests  {traffic.arrivals} in {traffic.span_s:.1f} s, {traffic.in_flight} in flight, "
            f"{traffic.failures} failed; {traffic.mean_prompt_tokens:.0f} + {traffic.mean_output_tokens:.0f} tokens, "
            f"{traffic.cached_share:.0%} cached"
        )
        lines.append(
            f"measured  TTFT {traffic.ttft_s:.3f} s, ITL {traffic.itl_s * 1000:.1f} ms, queue {traffic.queue_s:.3f} s, "
            f"start-up {f'{traffic.start_up_s:.1f} s' if traffic.start_up_s else 'not seen yet'}"
        )
    if status.HasField("plan"):
        expected = plan.predicted
        lines.append(f"plan      {counts_text(plan.counts)} ({plan.reason}: {plan.text})")
        lines.append(
            f"foreseen  {plan.demand:.2f} busy workers ({plan.forecaster or 'no forecast'}); "
            f"TTFT {expected.ttft_s:.3f} s, ITL {expected.itl_s * 1000:.1f} ms"
        )
        lines += [f"not       {counts_text(one.counts)}: {one.why_not}" for one in plan.rejected]
    return [*lines, *(f"obstacle  {text}" for text in status.obstacles)]


def entry_lines(entry: pb.LogEntry) -> list[str]:
    """An entry of the log."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at_s))
    kind = pb.LogEntry.Kind.Name(entry.kind).removeprefix("KIND_").lower()
    return [
        f"{entry.number:>5}  {when}  {entry.planner}  {kind}: {entry.text}",
        *(f"       done: {text}" for text in entry.done),
        *(f"       problem: {text}" for text in entry.problems),
    ]


def targets_text(targets: pb.PlannerTargets) -> str:
    """On one line."""
    gpus = f", at most {targets.max_gpus} GPUs" if targets.max_gpus else ""
    return (
        f"TTFT {targets.ttft_s:g} s, ITL {targets.itl_s * 1000:g} ms for {targets.quantile:.0%} of requests; "
        f"{targets.min_workers} to {targets.max_workers} workers{gpus}{'; PAUSED' if targets.is_paused else ''}"
    )


def counts_text(counts: pb.WorkerCounts) -> str:
    """Such as `2 prefill + 3 decode`."""
    named = (("aggregated", counts.aggregated), ("prefill", counts.prefill), ("decode", counts.decode))
    return " + ".join(f"{count} {name}" for name, count in named if count) or "none"
