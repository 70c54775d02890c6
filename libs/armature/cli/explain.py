"""`armature explain`: why a request went where it went, and where another policy would have sent it."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence

import grpc
from google.protobuf.json_format import MessageToJson
from rich.console import Console
from rich.table import Table

from armature.cli.arguments import add_place
from armature.cli.attach import FILE_WIDTH, find_cell
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import StartError
from armature.runtime.tls import TlsFiles
from armature.v1.common_pb2 import Tier
from armature.v1.router_pb2 import Candidate, Counterfactual, Decision, ExplainRequest, ExplainResponse
from armature.v1.router_pb2_grpc import RouterStub

TIMEOUT_S = 5.0
# What the REST API puts before a request's id.
_PREFIXES = ("chatcmpl-", "cmpl-", "resp-")


def add_explain(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Options of `armature explain`."""
    text = "tell why requests went where they went"
    command = add_parser(
        "explain", help=text, allow_abbrev=False,
        description="Tell why a request went where it went: every way that was weighed with its predicted seconds, "
        "and what other policies would have done at that moment. Routers remember their decisions for a while.",
    )  # fmt: skip
    command.set_defaults(run=_run)
    add = command.add_argument
    text = "a request's id, as in the answer or its x-request-id header (default: the latest requests)"
    add("request_id", nargs="?", default="", metavar="ID", help=text)
    text = "judge by this policy only (default: by all that come with the router); may be repeated"
    add("--policy", dest="policies", action="append", default=[], metavar="NAME", help=text)
    add("--limit", type=int, default=3, metavar="N", help="how many of the latest (default: %(default)s)")
    text = "how many ways to show of each, the best ones (default: %(default)s)"
    add("--candidates", type=int, default=8, metavar="N", help=text)
    add("--json", action="store_true", help="print JSON")
    add_place(command)


def _run(args: argparse.Namespace, console: Console) -> int:
    state = find_cell(args.state_dir / args.namespace)
    addresses = [process.address for process in state.processes if process.kind == "router" and process.address]
    request = ExplainRequest(
        request_id=_bare(args.request_id), policies=args.policies,
        limit=max(args.limit, 0), max_candidates=max(args.candidates, 0),
    )  # fmt: skip
    decisions = asyncio.run(_ask_all(addresses, request, state.tls))
    if args.json:
        print(MessageToJson(ExplainResponse(decisions=decisions), preserving_proto_field_name=True))
        return 0
    if not decisions:
        print("no request has been placed yet", file=sys.stderr)
    # Numbers cut short are of no use: rather broken lines on a narrow terminal.
    wide = console if console.is_terminal else Console(file=console.file, width=FILE_WIDTH)
    for decision in decisions:
        show(decision, wide)
    return 0


def _bare(request_id: str) -> str:
    for prefix in _PREFIXES:
        request_id = request_id.removeprefix(prefix)
    return request_id


async def _ask_all(addresses: Sequence[str], request: ExplainRequest, tls: TlsFiles | None = None) -> list[Decision]:
    """What all routers remember, oldest first.

    Raises:
        StartError: none of them knows the request, or none can be asked.
    """
    channels = ChannelPool(tls)
    stubs = [RouterStub(channels.get(address)) for address in addresses]
    asking = (stub.Explain(request, timeout=TIMEOUT_S) for stub in stubs)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    await channels.close()
    decisions = [decision for answer in answers if isinstance(answer, ExplainResponse) for decision in answer.decisions]
    errors = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    if errors and not decisions:
        raise StartError(errors[0].details() or errors[0].code().name)
    if not addresses:
        raise StartError("the cell has no router now: see `armature status`")
    return sorted(decisions, key=lambda decision: -decision.age_s)


def show(decision: Decision, console: Console) -> None:
    """Print one decision."""
    came = f", first token after {decision.ttft_s:.3f} s" if decision.HasField("ttft_s") else ""
    if decision.HasField("cached_tokens"):
        came += f" with {decision.cached_tokens} tokens cached"
    console.print(
        f"[bold]{decision.request_id}[/]  {decision.prompt_tokens} prompt tokens for {decision.model}, "
        f"{decision.age_s:.1f} s ago by policy {decision.policy}{came}",
        highlight=False,
    )
    if decision.HasField("rejected"):
        console.print(f"refused: {decision.rejected.reason}\n", markup=False, highlight=False)
        return
    console.print(_candidates(decision))
    others = [one for one in decision.counterfactuals if not (one.is_same and one.policy == decision.policy)]
    if others:
        console.print(_counterfactuals(others))
    console.print()


def _candidates(decision: Decision) -> Table:
    shown = decision.candidates
    most = {name: max(candidate.terms[name] for candidate in shown) for name in shown[0].terms}
    terms = sorted((name for name in most if most[name]), key=lambda name: (-most[name], name))
    pairs = any(candidate.prefill_worker for candidate in shown)
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    made.add_column("")
    made.add_column("decode")
    if pairs:
        made.add_column("prefill")
    onboards = any(candidate.onboard for candidate in shown)
    for name in ("overlap", *(["onboard"] if onboards else []), "ttft s", *terms, f"cost {decision.unit}".strip()):
        made.add_column(name, justify="right")
    for candidate in shown:
        made.add_row(*_cells(candidate, terms, pairs, onboards), style="bold green" if candidate.is_chosen else None)
    if (left := decision.num_candidates - len(shown)) > 0:
        made.add_row("", f"… {left} more")
    return made


def _cells(candidate: Candidate, terms: Sequence[str], pairs: bool, onboards: bool) -> list[str]:
    cells = ["→" if candidate.is_chosen else "", candidate.decode_worker]
    if candidate.pull_worker:
        cells[-1] += f" (reads from {candidate.pull_worker})"
    if pairs:
        cells.append(candidate.prefill_worker or "-")
    cells.append(str(candidate.overlap_tokens))
    if onboards:
        parts = [f"{part.tokens} {Tier.Name(part.tier).removeprefix('TIER_')}" for part in candidate.onboard]
        cells.append(" + ".join(parts) or "-")
    cells.append(f"{candidate.predicted_ttft_s:.3f}")
    return [*cells, *(f"{candidate.terms[name]:.3f}" for name in terms), f"{candidate.cost:.3f}"]


def _counterfactuals(others: Sequence[Counterfactual]) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("another policy", "decode", "prefill"):
        made.add_column(name)
    made.add_column("ttft s", justify="right")
    for other in others:
        where = other.decode_worker or "nowhere"
        ttft = f"{other.predicted_ttft_s:.3f}" if other.decode_worker else ""
        made.add_row(other.policy, where, other.prefill_worker or "-", ttft, style="dim" if other.is_same else None)
    return made
