"""What public claims on disaggregation become by the measured tables: `make plan-claims` (needs the extra `silicon`).

NVIDIA has published for Dynamo: Llama 70B in FP8 on H100 (vLLM, 3,000 prompt and 150 answer tokens), 30 % more of a GPU
on one node and twice as much on two; and DeepSeek-R1 on GB200 NVL72 (FP4, disaggregated) against Hopper (aggregated),
up to 30 times the requests. At which speed for a user is not told with the numbers, so a range of them is.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from armature.cli.deployment.replicas import replicas_of
from armature.cli.deployment.request import add_request, asked_of
from armature.cli.deployment.solve import solve
from armature.planning.search.replica import Point
from armature.planning.search.search import AGGREGATED, DISAGGREGATED, best_within

LLAMA = "nvidia/Llama-3.1-70B-Instruct-FP8 --gpu h100_sxm --isl 3000 --osl 150"
DEEPSEEK = "--isl 32000 --osl 8000 --ttft-s 20"
SEARCHES = {
    "llama, one node": f"{LLAMA} --gpus 8",
    "llama, two nodes": f"{LLAMA} --gpus 16",
    "r1 fp8, h100": f"deepseek-ai/DeepSeek-R1 --gpu h100_sxm --gpus 32 {DEEPSEEK}",
    "r1 fp4, gb200": f"nvidia/DeepSeek-V3.1-NVFP4 --gpu gb200 --gpus 64 {DEEPSEEK}",
}
"""By name, as one would write them behind `armature plan`. The tables know no FP4 of R1; V3.1 is the same in size."""

Frontiers = Mapping[str, Sequence[Point]]
"""By mode."""


class Claim(NamedTuple):
    """Disaggregated in one search over aggregated in another."""

    name: str
    disaggregated: str
    aggregated: str
    speeds: Sequence[int]
    """Tokens a second of a user."""


CLAIMS = (
    Claim("Llama 70B, one node (claimed 1.3)", "llama, one node", "llama, one node", (10, 20, 30, 40, 50, 60, 80)),
    Claim("Llama 70B, two nodes (claimed 2)", "llama, two nodes", "llama, two nodes", (10, 20, 30, 40, 50, 60, 80)),
    Claim("DeepSeek, 32 H100 alone", "r1 fp8, h100", "r1 fp8, h100", (10, 20, 30, 40, 50, 60)),
    Claim("DeepSeek, 64 GB200 alone", "r1 fp4, gb200", "r1 fp4, gb200", (10, 20, 30, 40, 50, 60)),
    Claim("DeepSeek, GB200 over H100 (claimed up to 30)", "r1 fp4, gb200", "r1 fp8, h100", (10, 20, 30, 40, 50, 60)),
)


def searched(words: str) -> Frontiers:
    """The frontiers of both modes."""
    parser = argparse.ArgumentParser()
    add_request(parser)
    asked = asked_of(parser.parse_args(words.split()))
    solved = solve(asked, replicas_of(asked, _quiet), _quiet)
    return {mode: line for (_, mode), line in solved.frontiers.items()}


def rows(claim: Claim, found: Mapping[str, Frontiers]) -> list[list[str]]:
    """One for each speed."""
    told: list[list[str]] = []
    for speed in claim.speeds:
        one = best_within(found[claim.disaggregated][DISAGGREGATED], 1 / speed)
        other = best_within(found[claim.aggregated][AGGREGATED], 1 / speed)
        if one and other:
            ratio = f"{one.tokens_per_s_per_gpu / other.tokens_per_s_per_gpu:.2f}"
            rates = [f"{point.tokens_per_s_per_gpu:.0f}" for point in (other, one)]
            told.append([claim.name, str(speed), *rates, ratio, str(other), str(one)])
    return told


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Public claims on disaggregation, by the measured tables.")
    parser.add_argument("names", nargs="*", default=[], help="of searches: " + ", ".join(SEARCHES))
    wanted = parser.parse_args(argv).names or list(SEARCHES)
    console = Console(width=200)
    found: dict[str, Frontiers] = {}
    for name in wanted:
        console.print(f"{name}: armature plan {SEARCHES[name]}", style="dim", highlight=False)
        found[name] = searched(SEARCHES[name])
    table = Table(box=None)
    header = ("claim", "tok/s/user", "aggregated tok/s/GPU", "disaggregated", "ratio", "aggregated", "disaggregated")
    for text in header:
        table.add_column(text)
    for claim in CLAIMS:
        if {claim.disaggregated, claim.aggregated} <= found.keys():
            for row in rows(claim, found):
                table.add_row(*row)
    console.print(table)
    return 0


def _quiet(done: int, total: int, text: str) -> None:
    pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
