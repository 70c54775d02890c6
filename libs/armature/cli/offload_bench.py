"""`armature offload-bench`: what offload policies do with a trace: hits, bytes written, time saved, tier by tier."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from armature.cli.lower_tiers import add_speeds, shapes_of
from armature.cli.options import UsageError
from armature.cli.report.charts import COLORS, Chart, Line
from armature.cli.report.page import chart_page
from armature.cli.trace_files import read_trace
from armature.index.tiers import Tier
from armature.offload.policy import OffloadPolicy
from armature.performance.presets import PRESETS
from armature.routing.parts import PolicyError
from armature.runtime.policies import OFFLOAD_POLICIES, load_offload_policy
from armature.sim.tier_replay import SiteShape, TierReplay, TierReplayer, prompts_of

_GB = 1e9
_WIDTH = 180
_DEFAULT_PRESET = "qwen3-32b-tp2-h200"


class _Row(NamedTuple):
    """One policy at one size of host memory."""

    host_blocks: int
    policy: str
    replay: TierReplay
    first: TierReplay
    """The first policy's at this size, against which the others are told."""


def add_offload_bench(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    summary = "replay a trace on memory tiers under several offload policies"
    command = add_parser("offload-bench", help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    command.set_defaults(run=_run)
    command.add_argument("trace", type=Path, metavar="TRACE", help="Mooncake trace or request log (.jsonl)")
    add = command.add_argument
    text = "comma list of policies and YAML files; the first is what the others are held against (default: %(default)s)"
    add("--policies", default="all,frequency,tinylfu,cost", metavar="NAMES", help=text)
    add("--requests", type=int, default=0, metavar="N", help="only the first N requests (default: all)")
    add("--speed-up", type=float, default=1.0, metavar="X", help="rate of arrivals, times the trace's (default: 1)")
    _add_memory(command)
    results = command.add_argument_group("results").add_argument
    results("--json", type=Path, default=None, metavar="FILE", help="write the results there; - is stdout")
    results("--report", type=Path, default=None, metavar="FILE.html", help="write a page with plots there")


def _add_memory(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("memory of the site, all nodes together").add_argument
    text = f"model and GPUs of a worker: {', '.join(PRESETS)} (default: %(default)s)"
    add("--preset", default=_DEFAULT_PRESET, metavar="NAME", help=text)
    text = "whose device memories count as one, as if every request went where its prefix is (default: %(default)s)"
    add("--workers", type=int, default=8, metavar="N", help=text)
    text = "blocks of host memory (G2); a comma list replays each size (default: %(default)s)"
    add("--host-blocks", default="30000", metavar="N,...", help=text)
    add(
        "--disk-blocks", type=int, default=60_000, metavar="N", help="likewise disk, G3; 0: none (default: %(default)s)"
    )
    add("--remote-blocks", type=int, default=0, metavar="N", help="remote store, G4 (default: none)")
    add_speeds(add)


def _run(args: argparse.Namespace, console: Console) -> int:
    policies = _policies(args.policies)
    try:
        rows = _replay(args, policies)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if args.json is None or str(args.json) != "-":
        Console(width=max(console.width, _WIDTH)).print(_table(rows))
    if args.json is not None:
        _write_json(args, rows)
    if args.report is not None:
        header, cells = _header(rows), {f"{row.policy} {row.host_blocks}": _cells(row) for row in rows}
        _write(args.report, chart_page("Offload policies", _about(args, rows), header, cells, _charts(rows)).encode())
    return 0


def _policies(names: str) -> dict[str, OffloadPolicy]:
    listed = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not listed:
        raise UsageError(f"--policies names none; there are {', '.join(OFFLOAD_POLICIES.names())}")
    try:
        return {Path(name).stem: load_offload_policy(name) for name in listed}
    except PolicyError as error:
        raise UsageError(str(error)) from error


def _replay(args: argparse.Namespace, policies: Mapping[str, OffloadPolicy]) -> list[_Row]:
    if args.requests < 0:
        raise UsageError(f"--requests is {args.requests}; it must be at least 0")
    trace = read_trace(args.trace).cut_out(num_requests=args.requests).sped_up(args.speed_up)
    prompts, errors = prompts_of(trace), Console(stderr=True)
    rows: list[_Row] = []
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        for host_blocks in _sizes(args.host_blocks):
            site, first = _site(args, trace.block_size, host_blocks), None
            for name, policy in policies.items():
                title = f"{name}, {host_blocks} host blocks"
                started_s, bar = time.monotonic(), progress.add_task(title, total=len(prompts))
                replayer = TierReplayer(site, policy, trace.block_size)
                replay = replayer.run(prompts, lambda served, bar=bar: progress.update(bar, completed=served))
                first = first or replay
                rows.append(_Row(host_blocks, name, replay, first))
                took = f"{time.monotonic() - started_s:.1f} s"
                errors.print(f"{title}: {replay.requests} requests in {took}", style="dim")
    return rows


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--host-blocks is {text!r}; write whole numbers, such as 15000,30000") from error
    if min(sizes) < 1:
        raise UsageError(f"--host-blocks is {text!r}; each size must be at least 1")
    return sizes


def _site(args: argparse.Namespace, block_size: int, host_blocks: int) -> SiteShape:
    preset = PRESETS.get(args.preset)
    if preset is None:
        raise UsageError(f"there is no preset {args.preset!r}; there are {', '.join(PRESETS)}")
    sizes = host_blocks, args.disk_blocks, args.remote_blocks
    shapes = shapes_of(args, sizes, block_size * preset.token_bytes)
    return SiteShape(args.workers * (preset.kv_tokens // block_size), shapes, preset.performance)


# --- what is told


def _header(rows: Sequence[_Row]) -> list[str]:
    header = ["hits", "of first", "G1"]
    for tier in rows[0].replay.tiers:
        header += [tier.name, "saved s"]
        if tier is not Tier.G2:
            header += ["GB written", "of first", "per hit"]
    return [*header, "prefill saved"]


def _cells(row: _Row) -> list[str]:
    replay, first = row.replay, row.first
    cells = [f"{replay.hit_blocks / max(replay.prompt_blocks, 1):.1%}", _ratio(replay.hit_blocks, first.hit_blocks)]
    cells.append(f"{replay.device_hits}")
    for tier, one in replay.tiers.items():
        cells += [f"{one.hit_blocks}", f"{one.saved_s:.0f}"]
        if tier is not Tier.G2:
            written = _ratio(one.written_bytes, first.tiers[tier].written_bytes)
            cells += [
                f"{one.written_bytes / _GB:,.0f}",
                written,
                f"{one.written_per_hit:.2f}" if one.hit_bytes else "-",
            ]
    return [*cells, f"{replay.saved_s / replay.compute_s:.1%}" if replay.compute_s else "-"]


def _ratio(value: float, first: float) -> str:
    return f"{value / first:.1%}" if first else "-"


def _table(rows: Sequence[_Row]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("host blocks", justify="right", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for header in _header(rows):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row.host_blocks), row.policy, *_cells(row))
    return table


def _about(args: argparse.Namespace, rows: Sequence[_Row]) -> str:
    replay = rows[0].replay
    memory = (
        f"{args.workers} workers of {args.preset}, {args.disk_blocks:,} blocks of disk, {args.remote_blocks:,} remote"
    )
    return f"{args.trace.name}: {replay.requests:,} requests, {replay.prompt_blocks:,} whole blocks; {memory}"


def _charts(rows: Sequence[_Row]) -> list[Chart]:
    """Against the size of host memory, a line for each policy."""
    names = list(dict.fromkeys(row.policy for row in rows))
    tiers = list(rows[0].replay.tiers)

    def lines(of: Callable[[TierReplay], float]) -> list[Line]:
        points = {
            name: [(float(row.host_blocks), of(row.replay)) for row in rows if row.policy == name] for name in names
        }
        return [Line(name, points[name], COLORS[i % len(COLORS)]) for i, name in enumerate(names)]

    x = "blocks of host memory"
    charts = [Chart("Blocks found, on devices and below", x, "blocks", lines(lambda one: one.hit_blocks))]
    for tier in tiers:
        charts += [
            Chart(f"{tier.name}: blocks read", x, "blocks", lines(lambda one, at=tier: one.tiers[at].hit_blocks)),
            Chart(f"{tier.name}: written", x, "GB", lines(lambda one, at=tier: one.tiers[at].written_bytes / _GB)),
            Chart(f"{tier.name}: time to first token saved", x, "s", lines(lambda one, at=tier: one.tiers[at].saved_s)),
        ]
    return charts


def _write_json(args: argparse.Namespace, rows: Sequence[_Row]) -> None:
    options = {name: value for name, value in vars(args).items() if name not in ("run", "json", "report")}
    options["trace"] = args.trace.name
    results = [{"host_blocks": row.host_blocks, "policy": row.policy, **_plain(row.replay)} for row in rows]
    document = msgspec.json.encode({"options": options, "results": results}, order="sorted")
    text = msgspec.json.format(document, indent=2) + b"\n"
    if str(args.json) == "-":
        sys.stdout.write(text.decode())
    else:
        _write(args.json, text)


def _plain(replay: TierReplay) -> dict[str, object]:
    tiers = {tier.name: asdict(one) for tier, one in replay.tiers.items()}
    return {**asdict(replay), "tiers": tiers, "hit_blocks": replay.hit_blocks, "saved_s": replay.saved_s}


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error}") from error
