"""`armature plan`: parses, searches with a progress bar, tells."""

import argparse
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress

from armature.cli.deployment.manifests import write_overlay
from armature.cli.deployment.pictures import page, pareto
from armature.cli.deployment.rehearsal import rehearse
from armature.cli.deployment.replicas import replicas_of
from armature.cli.deployment.request import Asked, add_request, asked_of
from armature.cli.deployment.solve import Solved, solve
from armature.cli.deployment.tables import best_table, document, sized_table
from armature.cli.options import UsageError
from armature.cli.report.png import png
from armature.engines.silicon import SiliconError

_WIDTH = 120
EXAMPLES = """examples:
  armature plan Qwen/Qwen3-32B --isl 4000 --osl 500
      what one GPU carries within the targets, aggregated and disaggregated
  armature plan Qwen/Qwen3-32B --gpu h100_sxm,h200_sxm --price h100_sxm=2.5,h200_sxm=3.2 --isl 4000 --osl 500 --rate 20
      the cheapest deployment for 20 requests a second, with queueing
  armature plan Qwen/Qwen3-32B --trace conversation_trace.jsonl --gpus 64 --rehearse --manifests k8s/overlays/qwen3-32b
      for recorded traffic, replayed on the winner, with the manifests to run it

Splits are written tp2 pp2 dp4 ep8: GPUs that share a layer, stages, groups of attention, parts of the experts.
"Always busy" knows no queues: a TTFT there is a prompt's own time. "For the traffic" replays every arrival.
Step times are those of the extra `silicon`: pip install armature[silicon].
"""


def add_plan(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    text = "find the deployment of a model that serves traffic on the fewest GPUs"
    command = add_parser("plan", help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    command.set_defaults(run=_run)
    command.epilog, command.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    add_request(command)
    add = command.add_argument_group("results").add_argument
    text = "replay the traffic on the winner in simulated time: what users would get, caches and queues included"
    add("--rehearse", action="store_true", help=text)
    add("--json", type=Path, default=None, metavar="FILE", help="write everything there; - is stdout")
    add("--report", type=Path, default=None, metavar="FILE.html", help="write a page with the Pareto frontiers there")
    add("--png", type=Path, default=None, metavar="FILE.png", help="likewise the picture alone")
    text = "write a kustomize overlay for the winner there; the folder must be beside k8s/base's other overlays"
    add("--manifests", type=Path, default=None, metavar="DIR", help=text)


def _run(args: argparse.Namespace, console: Console) -> int:
    try:
        asked = asked_of(args)
        if args.rehearse and asked.trace is None:
            raise UsageError("--rehearse replays traffic: say --rate, or name a --trace")
        with _bar("measured splits") as progress:
            found = replicas_of(asked, progress)
        with _bar("deployments") as progress:
            solved = solve(asked, found, progress)
        replayed = rehearse(asked, solved.winner, args.seed) if args.rehearse and solved.winner else None
    except (SiliconError, ValueError) as error:
        raise UsageError(str(error)) from error
    told = dict(document(asked, solved)) | ({"rehearsed": replayed} if replayed else {})
    encoded = msgspec.json.format(msgspec.json.encode(told, order="sorted"), indent=2) + b"\n"
    if str(args.json) == "-":
        sys.stdout.write(encoded.decode())
    else:
        _tell(asked, solved, replayed, console)
        if args.json is not None:
            _write(args.json, encoded)
    if args.report is not None:
        _write(args.report, page(asked, solved).encode())
    if args.png is not None:
        _write(args.png, png(pareto(solved)))
    if args.manifests is not None and solved.winner is not None:
        write_overlay(args.manifests, asked, solved.winner)
    return 0 if solved.winner else 1


def _tell(asked: Asked, solved: Solved, replayed: dict[str, float] | None, console: Console) -> None:
    wide = Console(width=max(console.width, _WIDTH))
    wide.print(best_table(solved))
    if solved.fitted:
        wide.print()
        wide.print(sized_table(solved, asked))
    if solved.winner is not None:
        wide.print(f"\n[bold]{solved.winner}[/bold] on {solved.winner.gpus} {solved.winner.gpu}", highlight=False)
    else:
        wide.print("\nnothing holds the targets within so many GPUs; loosen --ttft-s or --itl-s, or raise --gpus")
    if replayed:
        quantile = f"p{100 * asked.targets.quantile:g}"
        wide.print(
            f"replayed: {quantile} TTFT {replayed['ttft_s']:.2f} s, ITL {replayed['itl_s'] * 1000:.1f} ms, "
            f"{replayed['reuse']:.0%} of prompts from caches, {replayed['unserved']:.0f} requests not served",
            highlight=False,
        )
    if solved.missing:
        errors = Console(stderr=True)
        errors.print(
            f"{len(solved.missing)} splits are not in the tables or don't fit; --json tells which", style="dim"
        )


@contextmanager
def _bar(name: str) -> Generator[Callable[[int, int, str], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        row = progress.add_task(name, total=None)
        yield lambda done, total, text: progress.update(row, completed=done, total=total, description=f"{name}: {text}")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error}") from error
