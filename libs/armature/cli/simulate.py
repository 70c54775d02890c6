"""`armature simulate` and `armature compare`: a trace replayed on a simulated cell, under one policy or several.

The tables and the JSON depend on the trace and the options only; how long it took is told on stderr.
"""

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from armature.cli.options import UsageError
from armature.cli.results import Result, add_results, tell
from armature.cli.simulated_cell import add_cell, cell_of
from armature.cli.traffic import add_traffic, traffic_of
from armature.routing.parts import PolicyError
from armature.routing.policy import Policy, policy_of, with_option
from armature.routing.router import RoutingCore
from armature.runtime.policies import DEFAULT_POLICY, read_policy, shipped_policies
from armature.sim.cell import CellShape
from armature.sim.simulation import Simulation
from armature.sim.summary import summarize
from armature.sim.trace import Trace


def add_simulations(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both commands to the command line."""
    one, several = "replay a trace on a simulated cell", "replay a trace under several placement policies"
    for name, summary in (("simulate", one), ("compare", several)):
        text = f"{summary[0].upper()}{summary[1:]}."
        command = add_parser(name, help=summary, description=text, allow_abbrev=False)
        command.set_defaults(run=_run)
        add = command.add_argument
        names = ", ".join(shipped_policies())
        if name == "simulate":
            help_text = f"who places requests: {names}, or a YAML file (default: %(default)s)"
            add("--policy", dest="policies", default=DEFAULT_POLICY, metavar="NAME", help=help_text)
        else:
            help_text = "comma list of policies and YAML files (default: %(default)s)"
            add("--policies", default=",".join(shipped_policies()), metavar="NAMES", help=help_text)
        add_cell(command)
        add_traffic(command)
        _add_choice(command)
        add_results(command)


def _add_choice(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("choice").add_argument
    help_text = "an option of the policies, such as interference.weight or expected_ttl_s; can be repeated"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=help_text)
    add("--seed", type=int, default=0, metavar="N", help="of all that is drawn by lot (default: %(default)s)")


def _run(args: argparse.Namespace, console: Console) -> int:
    policies = _policies(args.policies, args.set)
    try:
        trace = traffic_of(args)
        task = _Task(trace, cell_of(args, trace.block_size), args.routers, args.concurrency, args.seed)
        results = _replay(task, policies)
    except ValueError as error:
        raise UsageError(str(error)) from error
    tell(args, results, console)
    return 0


def _policies(names: str, given: Sequence[str]) -> dict[str, Policy]:
    """By what they are called on the command line."""
    listed = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not listed:
        raise UsageError(f"no policy is named; there are {', '.join(shipped_policies())}")
    try:
        return {name: _policy(name, given) for name in listed}
    except PolicyError as error:
        raise UsageError(str(error)) from error


def _policy(name: str, given: Sequence[str]) -> Policy:
    plain = read_policy(name)
    for word in given:
        path, has_value, value = word.partition("=")
        if not has_value:
            raise UsageError(f"--set {word}: write NAME=VALUE")
        try:
            plain = with_option(plain, path, _plain_value(value))
        except PolicyError as error:
            raise UsageError(f"--set {error}") from error
    return policy_of(plain, Path(name).stem)


def _plain_value(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True, slots=True)
class _Task:
    """What every policy has to cope with."""

    trace: Trace
    cell: CellShape
    num_routers: int
    concurrency: int
    seed: int

    def simulation(self, policy: Policy) -> Simulation:
        """A fresh cell. Each router draws lots of its own."""
        rngs = [random.Random(self.seed + i) for i in range(self.num_routers)]
        cores = [RoutingCore(policy, rng) for rng in rngs]
        return Simulation(self.trace, self.cell, cores, concurrency=self.concurrency)


def _replay(task: _Task, policies: Mapping[str, Policy]) -> dict[str, Result]:
    """Each policy on its own copy of the cell."""
    results: dict[str, Result] = {}
    errors, total = Console(stderr=True), len(task.trace.requests)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        for name, policy in policies.items():
            started_s, row = time.monotonic(), progress.add_task(name, total=total)
            simulation = task.simulation(policy)
            run = simulation.run(lambda ended, row=row: progress.update(row, completed=ended))
            results[name] = Result(run, summarize(run))
            progress.update(row, completed=total)
            errors.print(f"{name}: {total} requests in {time.monotonic() - started_s:.1f} s", style="dim")
    return results
