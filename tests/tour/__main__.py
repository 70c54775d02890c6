"""`make tour`: the whole tour of a running cell, as a table. The exit status is 0 if every step passed, else 1."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from armature.cli.attach import find_cell
from armature.runtime.errors import StartError
from tests.tour.steps import CLIENTS, KEY_ENV, Outcome, Target, arguments, run_client


def main() -> int:
    args = arguments().parse_args()
    unknown = [name for name in args.clients if name not in CLIENTS]
    if unknown:
        raise SystemExit(f"unknown client {unknown[0]}; there are {', '.join(CLIENTS)}")
    target = _target(args.url, args.grpc, args.model, Path(args.state_dir) / args.namespace)
    clients = args.clients or [name for name in CLIENTS if name != "litellm" or args.litellm_python]
    outcomes: list[Outcome] = []
    for client in clients:
        python = args.litellm_python if client == "litellm" and args.litellm_python else sys.executable
        try:
            outcomes += asyncio.run(run_client(client, target, python))
        except RuntimeError as error:
            outcomes.append(Outcome(client, "runs to its end", str(error), 0.0))
    _show(target, outcomes)
    return int(any(outcome.error for outcome in outcomes))


def _target(url: str, grpc: str, model: str, directory: Path) -> Target:
    key = os.environ.get(KEY_ENV) or "unused"
    if url and grpc:
        return Target(url.rstrip("/"), grpc, model or "demo", key)
    try:
        state = find_cell(directory)
    except StartError as error:
        raise SystemExit(f"{error}; or pass --url and --grpc") from None
    if not state.url:
        raise SystemExit("the cell does not serve yet: see `armature status`")
    return Target(url.rstrip("/") or state.url, grpc or state.grpc, model or state.model, key)


def _show(target: Target, outcomes: Sequence[Outcome]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("client", "step", "", "s"):
        table.add_column(name, justify="right" if name == "s" else "left", no_wrap=name != "")
    for outcome in outcomes:
        result = f"[red]FAILED[/] {escape(outcome.error)}" if outcome.error else "[green]passed[/]"
        table.add_row(outcome.client, outcome.step, result, f"{outcome.seconds:.2f}")
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    failed = sum(bool(outcome.error) for outcome in outcomes)
    console.print(f"\n{len(outcomes) - failed} of {len(outcomes)} steps passed on {target.url}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
