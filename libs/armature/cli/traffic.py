"""The options that say what a simulated cell has to serve."""

import argparse
import random
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path

from armature.cli.options import UsageError
from armature.cli.trace_files import DEFAULT_BLOCK_SIZE, read_trace
from armature.sim.superposition import superposed
from armature.sim.synthetic import SyntheticRequests, TrafficShape
from armature.sim.trace import Trace

_SYNTHETIC_REQUESTS = 10_000


def add_traffic(command: argparse.ArgumentParser) -> None:
    """Add the options to a command."""
    text = "Mooncake trace or request log (.jsonl), or Azure trace (.csv, which tells nothing of contents)"
    command.add_argument("trace", type=Path, nargs="?", metavar="TRACE", help=text)
    add = command.add_argument_group("traffic").add_argument
    names = ", ".join(f"{field.name}={field.default:g}" for field in fields(TrafficShape))
    text = f"instead of a trace: made-up requests (--requests of them, default {_SYNTHETIC_REQUESTS}); any of {names}"
    add("--synthetic", metavar="NAME=VALUE,...", help=text)
    text = "tokens of a block, for Azure traces and made-up requests; other traces have their own (default: 512)"
    add("--block-size", type=int, default=0, metavar="N", help=text)
    text = "so many copies of the trace at once, each begun elsewhere in it: a service with more users (default: 1)"
    add("--copies", type=int, default=1, metavar="N", help=text)
    text = "copies are shifted by up to so much to either side; 0: all do the same at once (default: by anything)"
    add("--copy-spread-s", type=float, default=float("inf"), metavar="SECONDS", help=text)
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
    for name in ("requests", "concurrency", "block_size"):
        if getattr(args, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 0")
    if (args.trace is None) == (args.synthetic is None):
        raise UsageError("name a trace, or describe made-up requests with --synthetic")
    if args.synthetic is not None:
        return _synthetic(args)
    trace = read_trace(args.trace, block_size=args.block_size)
    trace = superposed(trace, args.copies, random.Random(args.seed), args.copy_spread_s)
    return trace.cut_out(args.start_s, args.duration_s, args.requests).sped_up(args.speed_up)


def _synthetic(args: argparse.Namespace) -> Trace:
    if args.start_s or args.duration_s < float("inf"):
        raise UsageError("--start-s and --duration-s cut traces; with --synthetic say --requests")
    if args.copies != 1:
        raise UsageError("--copies multiplies a trace; with --synthetic say a higher rate")
    if not 0 < args.speed_up < float("inf"):
        raise UsageError(f"the speed-up is {args.speed_up}; it must be above 0")
    shape = _shape(args.synthetic)
    shape = replace(shape, rate=shape.rate * args.speed_up)
    block_size, seed = args.block_size or DEFAULT_BLOCK_SIZE, args.seed
    num_requests = args.requests or _SYNTHETIC_REQUESTS
    requests = SyntheticRequests(shape, num_requests, block_size, lambda: random.Random(seed))
    return Trace(requests, block_size)


def _shape(text: str) -> TrafficShape:
    known = {field.name: int if isinstance(field.default, int) else float for field in fields(TrafficShape)}
    given: dict[str, float] = {}
    for word in filter(None, text.split(",")):
        name, _, value = word.strip().partition("=")
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise UsageError(f"--synthetic {word}: there is no {name!r}; {hint}")
        try:
            given[name] = known[name](value)
        except ValueError as error:
            raise UsageError(f"--synthetic {word}: {name} must be a number") from error
    try:
        return TrafficShape(**given)  # pyright: ignore[reportArgumentType]
    except ValueError as error:
        raise UsageError(f"--synthetic: {error}") from error
