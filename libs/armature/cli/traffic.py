"""The options that say what a simulated cell has to serve."""

import argparse
from pathlib import Path

from armature.cli.options import UsageError
from armature.cli.trace_files import read_trace
from armature.sim.trace import Trace


def add_traffic(command: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    text = "Mooncake trace or request log (.jsonl), or Azure trace (.csv)"
    command.add_argument("trace", type=Path, metavar="TRACE", help=text)
    add = command.add_argument_group("traffic").add_argument
    text = "tokens of a block, for Azure traces and request logs; Mooncake traces have 512 (default: 512)"
    add("--block-size", type=int, default=0, metavar="N", help=text)
    add("--speed-up", type=float, default=1.0, metavar="X", help="rate of arrivals, times the trace's (default: 1)")
    text = "so many clients, each asking again when it is answered (default: requests come when the trace says)"
    add("--concurrency", type=int, default=0, metavar="N", help=text)
    add("--start-s", type=float, default=0.0, metavar="SECONDS", help="leave out what comes earlier in the trace")
    text = "only so much of the trace, before it is sped up (default: all)"
    add("--duration-s", type=float, default=float("inf"), metavar="SECONDS", help=text)
    add("--requests", type=int, default=0, metavar="N", help="only the first N requests (default: all)")


def traffic_of(args: argparse.Namespace) -> Trace:
    """The requests.

    Raises:
        UsageError, ValueError: an option makes no sense, or a file is wrong.
    """
    for name in ("requests", "concurrency"):
        if getattr(args, name) < 0:
            raise UsageError(f"--{name} is {getattr(args, name)}; it must be at least 0")
    trace = read_trace(args.trace, block_size=args.block_size)
    return trace.cut_out(args.start_s, args.duration_s, args.requests).sped_up(args.speed_up)
