"""What `armature plan` is asked: a model, GPUs, traffic and targets."""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armature.cli.options import UsageError
from armature.cli.trace_files import read_trace
from armature.planning.capacity import Targets
from armature.planning.observer import Arrivals
from armature.planning.search.replica import Workload
from armature.planning.search.search import MODES, Bounds
from armature.sim.synthetic import SyntheticRequests, TrafficShape
from armature.sim.trace import Trace

_USUAL_REQUESTS = 2000
_BLOCK_SIZE = 64
"""Of made-up requests: what fills no block is computed on decode workers."""

Add = Callable[..., argparse.Action]


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line, understood."""

    model: str
    gpus: tuple[str, ...]
    """Types."""
    backend: str
    work: Workload
    targets: Targets
    bounds: Bounds
    modes: tuple[str, ...]
    prices: dict[str, float]
    """Of a GPU an hour, by type."""
    replica_gpus: int
    """No more for one copy of the model."""
    max_num_seqs: int
    cached_share: float
    trace: Trace | None
    """None: nobody says how often requests come, so only what a GPU carries is compared."""

    def arrivals(self) -> Arrivals | None:
        """The traffic as columns."""
        if self.trace is None:
            return None
        rows = [(one.arrival_s, one.prompt_tokens, one.output_tokens) for one in self.trace.requests]
        at_s, prompt, output = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
        cached = np.floor(prompt * self.cached_share)
        return Arrivals(at_s, prompt - cached, cached, output)


def add_request(command: argparse.ArgumentParser) -> None:
    """Add the options to the command."""
    text = "a Hugging Face name that the tables know, or a folder with a config.json"
    command.add_argument("model", metavar="MODEL", help=text)
    _add_hardware(command.add_argument_group("hardware").add_argument)
    _add_traffic(command.add_argument_group("traffic").add_argument)
    _add_targets(command.add_argument_group("targets").add_argument)


def _add_hardware(add: Add) -> None:
    text = "comma list of GPU types: h100_sxm, h200_sxm, b200_sxm, gb200, l40s, ... (default: %(default)s)"
    add("--gpu", default="h100_sxm", metavar="TYPES", help=text)
    add("--gpus", type=int, default=16, metavar="N", help="there are no more of them (default: %(default)s)")
    text = "no more for one copy of the model (default: as many as there are)"
    add("--replica-gpus", type=int, default=0, metavar="N", help=text)
    text = "engine whose tables are used: trtllm, vllm, sglang (default: %(default)s)"
    add("--backend", default="trtllm", metavar="NAME", help=text)
    text = "what a GPU costs an hour: one number, or TYPE=COST,...; without it the fewest GPUs win"
    add("--price", default="", metavar="COST", help=text)
    text = f"comma list of {', '.join(MODES)} (default: both)"
    add("--modes", default=",".join(MODES), metavar="NAMES", help=text)
    text = "requests in one step of an engine (default: %(default)s)"
    add("--max-num-seqs", type=int, default=512, metavar="N", help=text)
    text = "of each GPU, for KV from prefill to decode (default: %(default)g)"
    add("--link-bytes-per-s", type=float, default=40e9, metavar="N", help=text)


def _add_traffic(add: Add) -> None:
    text = "Mooncake trace or request log (.jsonl), or Azure trace (.csv), instead of what follows"
    add("--trace", type=Path, default=None, metavar="FILE", help=text)
    add("--isl", type=int, default=0, metavar="N", help="tokens of a prompt (default: the trace's mean)")
    add("--osl", type=int, default=0, metavar="N", help="tokens of an answer (default: the trace's mean)")
    text = "requests a second; without it nothing is sized, only what a GPU carries is compared"
    add("--rate", type=float, default=0.0, metavar="X", help=text)
    text = "how much lengths vary: standard deviation over mean (default: %(default)g, all alike)"
    add("--cv", type=float, default=0.0, metavar="X", help=text)
    text = "of prompts, that is found in a cache (default: %(default)g)"
    add("--cached-share", type=float, default=0.0, metavar="X", help=text)
    text = f"so many requests are replayed (default: {_USUAL_REQUESTS}, or all of a trace)"
    add("--requests", type=int, default=0, metavar="N", help=text)
    add("--speed-up", type=float, default=1.0, metavar="X", help="rate of a trace's arrivals, times its own")
    add("--seed", type=int, default=0, metavar="N", help="of all that is drawn by lot (default: %(default)s)")


def _add_targets(add: Add) -> None:
    add("--ttft-s", type=float, default=2.0, metavar="SECONDS", help="time to first token (default: %(default)g)")
    text = "between tokens of an answer, in its mean (default: %(default)g)"
    add("--itl-s", type=float, default=0.05, metavar="SECONDS", help=text)
    text = "share of requests for which both are to hold (default: %(default)g)"
    add("--quantile", type=float, default=0.95, metavar="X", help=text)


def asked_of(args: argparse.Namespace) -> Asked:
    """What the command line means.

    Raises:
        UsageError, ValueError: an option makes no sense, or a file is wrong.
    """
    if not 0 <= args.cached_share < 1:
        raise UsageError(f"--cached-share is {args.cached_share}; it must be at least 0 and below 1")
    trace = _trace(args)
    isl, osl = args.isl or _mean(trace, "prompt_tokens"), args.osl or _mean(trace, "output_tokens")
    if not isl or not osl:
        raise UsageError("say how long requests are with --isl and --osl, or name a --trace")
    modes, gpus = _listed(args.modes, "--modes"), _listed(args.gpu, "--gpu")
    for mode in modes:
        if mode not in MODES:
            raise UsageError(f"--modes {mode}: there are {', '.join(MODES)}")
    return Asked(
        model=args.model,
        gpus=gpus,
        backend=args.backend,
        work=Workload(isl=isl, osl=max(osl, 2), cached_tokens=int(isl * args.cached_share)),
        targets=Targets(ttft_s=args.ttft_s, itl_s=args.itl_s, quantile=args.quantile),
        bounds=Bounds(gpus=args.gpus, ttft_s=args.ttft_s, link_bytes_per_s=args.link_bytes_per_s),
        modes=modes,
        prices=_prices(args.price, gpus),
        replica_gpus=min(args.replica_gpus or args.gpus, args.gpus),
        max_num_seqs=args.max_num_seqs,
        cached_share=args.cached_share,
        trace=trace,
    )


def _trace(args: argparse.Namespace) -> Trace | None:
    if args.trace is not None:
        if args.rate:
            raise UsageError("--rate and --trace exclude each other; a trace's own rate is changed by --speed-up")
        return read_trace(args.trace).cut_out(num_requests=args.requests).sped_up(args.speed_up)
    if not args.rate:
        return None
    if not args.isl or not args.osl:
        raise UsageError("--rate needs --isl and --osl")
    shape = TrafficShape(
        rate=args.rate, isl=args.isl, isl_cv=args.cv, osl=args.osl, osl_cv=args.cv, shared=args.cached_share
    )  # fmt: skip
    seed, count = args.seed, args.requests or _USUAL_REQUESTS
    return Trace(
        SyntheticRequests(shape, count, _BLOCK_SIZE, lambda: random.Random(seed)), _BLOCK_SIZE
    )  # fmt: skip


def _mean(trace: Trace | None, name: str) -> int:
    if trace is None:
        return 0
    return max(round(sum([getattr(one, name) for one in trace.requests]) / len(trace.requests)), 1)


def _listed(text: str, option: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not names:
        raise UsageError(f"{option} names nothing")
    return names


def _prices(text: str, gpus: tuple[str, ...]) -> dict[str, float]:
    """By type; either all have a price or none."""
    if not text:
        return {}
    if "=" not in text:
        text = ",".join(f"{gpu}={text}" for gpu in gpus)
    prices: dict[str, float] = {}
    for word in _listed(text, "--price"):
        gpu, _, value = word.partition("=")
        try:
            prices[gpu] = float(value)
        except ValueError as error:
            raise UsageError(f"--price {word}: write TYPE=COST, such as h100_sxm=2.5") from error
        if not 0 < prices[gpu] < float("inf"):
            raise UsageError(f"--price {word}: it must be above 0")
    if set(prices) != set(gpus):
        raise UsageError(f"--price is for {', '.join(prices)}; every type of --gpu needs one: {', '.join(gpus)}")
    return prices
