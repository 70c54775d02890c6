"""`armature rehearse`: a trace replayed on a simulated fleet that a planner sizes, beside other ways to size it.

The table and the JSON depend on the trace and the options only; how long it took is told on stderr.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from armature.cli.options import UsageError
from armature.cli.report.charts import COLORS, Chart, Line
from armature.cli.report.figures import Points
from armature.cli.report.page import chart_page
from armature.cli.simulated_cell import add_cell, cell_of, worker_kind_of
from armature.cli.sizing import RIVALS, Rehearsal, Sized
from armature.cli.traffic import add_traffic, traffic_of
from armature.planning.fleet import Counts
from armature.planning.policy import PlannerPolicy
from armature.routing.parts import PolicyError
from armature.runtime.policies import DEFAULT_POLICY, PLANNER_POLICIES, load_planner_policy, load_policy

_HEADER = ("windows met", "GPU-hours", "x foresight", "workers", "most", "changes", "unserved")
_WIDTH = 110


def add_rehearse(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    text = "replay a trace on a fleet that the planner sizes, and compare"
    command = add_parser("rehearse", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    command.set_defaults(run=_run)
    add = command.add_argument_group("planner").add_argument
    names = ", ".join(PLANNER_POLICIES.names())
    text = f"how it plans: {names}, or a YAML file (default: %(default)s)"
    add("--planner", default=PLANNER_POLICIES.default, metavar="NAME", help=text)
    text = f"comma list of others to compare with: {', '.join(RIVALS)} (default: all)"
    add("--against", default=",".join(RIVALS), metavar="NAMES", help=text)
    add("--ttft-s", type=float, default=None, metavar="SECONDS", help="target, instead of the policy's")
    add("--itl-s", type=float, default=None, metavar="SECONDS", help="target, instead of the policy's")
    text = "until a worker that is asked for is ready (default: %(default)g)"
    add("--start-up-s", type=float, default=60.0, metavar="SECONDS", help=text)
    text = "nothing is told of the first so many seconds, in which planners have seen little (default: %(default)g)"
    add("--warm-up-s", type=float, default=0.0, metavar="SECONDS", help=text)
    text = "replay in outline, without the router's queue and tiers: many times as fast, and near enough for sizing"
    add("--outline", action="store_true", help=text)
    add("--policy", default=DEFAULT_POLICY, metavar="NAME", help="who places requests (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of all that is drawn by lot (default: %(default)s)")
    add_cell(command)
    add_traffic(command)
    add = command.add_argument_group("results").add_argument
    add("--json", type=Path, default=None, metavar="FILE", help="write the results there; - is stdout")
    text = "write a page with plots there, which needs nothing besides itself"
    add("--report", type=Path, default=None, metavar="FILE.html", help=text)
    text = "write every change that the planner has decided there, with its reason and what it was not"
    add("--decisions-out", type=Path, default=None, metavar="FILE.jsonl", help=text)


def _run(args: argparse.Namespace, console: Console) -> int:
    rivals = [name.strip() for name in args.against.split(",") if name.strip()]
    for name in rivals:
        if name not in RIVALS:
            raise UsageError(f"--against {name}: there are {', '.join(RIVALS)}")
    try:
        policy = _policy(args)
        trace = traffic_of(args)
        start = Counts(args.workers or 0, args.prefill, args.decode)
        cell = cell_of(args, trace.block_size)
        room = replace(cell, num_prefill=0, num_decode=0, num_workers=policy.limits.max_workers)
        kind = worker_kind_of(args, room)
        errors = Console(stderr=True)
        rehearsal = Rehearsal(
            trace, room, kind, policy, load_policy(args.policy), start, args.start_up_s, args.seed,
            lambda text: errors.print(text, style="dim"), args.outline, args.warm_up_s,
        )  # fmt: skip
        results = rehearsal.run(rivals)
    except (PolicyError, ValueError) as error:
        raise UsageError(str(error)) from error
    _tell(args, policy, results, console)
    return 0


def _policy(args: argparse.Namespace) -> PlannerPolicy:
    policy = load_planner_policy(args.planner)
    given = {name: value for name in ("ttft_s", "itl_s") if (value := getattr(args, name)) is not None}
    return replace(policy, targets=replace(policy.targets, **given), start_up_s=args.start_up_s)


def _tell(args: argparse.Namespace, policy: PlannerPolicy, results: Mapping[str, Sized], console: Console) -> None:
    rows = _rows(results)
    if str(args.json) == "-":
        sys.stdout.write(_json(args, policy, results).decode())
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("sized by", no_wrap=True)
        for header in _HEADER:
            table.add_column(header, justify="right")
        for name, cells in rows.items():
            table.add_row(name, *cells)
        Console(width=max(console.width, _WIDTH)).print(table)
        if args.json is not None:
            _write(args.json, _json(args, policy, results))
    if args.report is not None:
        _write(args.report, _page(args, policy, rows, results).encode())
    if args.decisions_out is not None:
        decisions = results[policy.name].decisions
        _write(args.decisions_out, b"".join(msgspec.json.encode(one) + b"\n" for one in decisions))


def _rows(results: Mapping[str, Sized]) -> dict[str, list[str]]:
    best = results["foresight"].sizing.gpu_hours if "foresight" in results else 0.0
    rows: dict[str, list[str]] = {}
    for name, (sizing, *_) in results.items():
        ratio = f"{sizing.gpu_hours / best:.2f}" if best else "-"
        cells = [f"{sizing.attained:.1%}", f"{sizing.gpu_hours:.2f}", ratio, f"{sizing.mean_workers:.1f}"]
        rows[name] = [*cells, str(sizing.most_workers), str(sizing.changes), str(sizing.unserved)]
    return rows


def _json(args: argparse.Namespace, policy: PlannerPolicy, results: Mapping[str, Sized]) -> bytes:
    told = {name: {**asdict(one.sizing), "attained": one.sizing.attained} for name, one in results.items()}
    traffic = args.trace.name if args.trace else args.synthetic
    document = {"traffic": traffic, "copies": args.copies, "targets": asdict(policy.targets), "results": told}
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def _page(
    args: argparse.Namespace, policy: PlannerPolicy, rows: Mapping[str, list[str]], results: Mapping[str, Sized]
) -> str:
    targets = policy.targets
    traffic = args.trace.name if args.trace else "made-up requests"
    about = (
        f"{traffic}, copies: {args.copies}; targets at the {targets.quantile:.0%} quantile: "
        f"TTFT {targets.ttft_s:g} s, ITL {targets.itl_s * 1000:g} ms, in windows of {policy.window_s:g} s; workers of "
        f"{args.preset} at {args.worker_speed:g} times its speed are ready after {args.start_up_s:g} s"
    )
    colors = dict(zip(results, COLORS, strict=False))

    def chart(title: str, unit: str, points: Callable[[Sized], Points]) -> Chart:
        return Chart(title, "time, s", unit, [Line(name, points(one), colors[name]) for name, one in results.items()])

    def window(value: str) -> Callable[[Sized], Points]:
        return lambda one: [(w.from_s, getattr(w, value)) for w in one.sizing.windows if getattr(w, value) < 1e9]

    charts = [
        chart("Workers ready, starting and draining", "workers", _steps),
        chart("TTFT at the quantile, by window", "s", window("ttft_s")),
        chart("ITL at the quantile, by window", "s", window("itl_s")),
    ]
    return chart_page("Rehearsal", about, _HEADER, rows, charts)


def _steps(one: Sized) -> Points:
    """Right angles: a fleet changes at once."""
    points: Points = []
    for level in one.course:
        if points:
            points.append((level.at_s, points[-1][1]))
        points.append((level.at_s, float(level.total)))
    return points


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error}") from error
