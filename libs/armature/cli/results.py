"""What simulations have come to: a table, JSON, a line for each request, and the report."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from armature.cli.options import UsageError
from armature.cli.report.page import report
from armature.sim.simulation import Run
from armature.sim.summary import Summary

_WIDTH = 120
_TIMES = ("TTFT s", "p50", "p90", "p99", "ITL ms", "p99", "E2E s", "p99")
_HEADER = (*_TIMES, "reuse", "preempted", "unserved")
# What says where results go, and nothing of what they are.
_PLACES = ("run", "json", "report", "requests_out", "policies")


class Result(NamedTuple):
    """One policy's."""

    run: Run
    summary: Summary


def add_results(command: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    add = command.add_argument_group("results").add_argument
    add("--json", type=Path, default=None, metavar="FILE", help="write the results there; - is stdout")
    text = "write a page with plots there, which needs nothing besides itself"
    add("--report", type=Path, default=None, metavar="FILE.html", help=text)
    add("--requests-out", type=Path, default=None, metavar="FILE.jsonl", help="write a line for each request there")


def tell(args: argparse.Namespace, results: Mapping[str, Result], console: Console) -> None:
    """Print and write what was asked for.

    Raises:
        UsageError: a file can't be written.
    """
    if args.json is None or str(args.json) != "-":
        # Numbers cut short are of no use: rather broken lines on a narrow terminal.
        Console(width=max(console.width, _WIDTH)).print(_table(results))
    if args.json is not None and str(args.json) == "-":
        sys.stdout.write(_json(args, results).decode())
    elif args.json is not None:
        _write(args.json, [_json(args, results)])
    if args.requests_out is not None:
        _write(args.requests_out, _request_lines(results))
    if args.report is not None:
        rows = {name: _cells(one.summary) for name, one in results.items()}
        page = report(_about(args, results), _HEADER, rows, {name: one.run for name, one in results.items()})
        _write(args.report, [page.encode()])


def _table(results: Mapping[str, Result]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("policy", no_wrap=True)
    for header in _HEADER:
        table.add_column(header, justify="right")
    for policy, one in results.items():
        table.add_row(policy, *_cells(one.summary))
    return table


def _cells(one: Summary) -> Sequence[str]:
    ttft, itl, e2e = one.ttft_s, one.itl_s, one.e2e_s
    cells = [f"{value:.3f}" for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99)]
    cells += [f"{1000 * value:.1f}" for value in (itl.mean, itl.p99)]
    cells += [f"{value:.2f}" for value in (e2e.mean, e2e.p99)]
    return [*cells, f"{one.reuse:.3f}", str(one.preemptions), str(one.errors)]


def _json(args: argparse.Namespace, results: Mapping[str, Result]) -> bytes:
    options = {name: value for name, value in vars(args).items() if name not in _PLACES}
    options["trace"] = args.trace.name if args.trace else ""
    document = {"options": options, "results": {policy: asdict(one.summary) for policy, one in results.items()}}
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"


def _request_lines(results: Mapping[str, Result]) -> Iterator[bytes]:
    for policy, one in results.items():
        for outcome in one.run.outcomes:
            yield msgspec.json.encode({"policy": policy, **asdict(outcome)}) + b"\n"


def _about(args: argparse.Namespace, results: Mapping[str, Result]) -> str:
    traffic = args.trace.name if args.trace else f"made-up requests ({args.synthetic or 'usual'})"
    requests = max([one.summary.requests for one in results.values()])
    workers = max([len(one.run.workers) for one in results.values()])
    pace = f"{args.concurrency} clients in turn" if args.concurrency else f"at {args.speed_up:g} times its rate"
    split = f", {args.prefill} for prefill and {args.decode} for decode" if args.decode else ""
    return f"{traffic}: {requests:,} requests, {pace}; {workers} workers of {args.preset}{split}; seed {args.seed}"


def _write(path: Path, parts: Sequence[bytes] | Iterator[bytes]) -> None:
    try:
        with path.open("wb") as file:
            file.writelines(parts)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error}") from error
