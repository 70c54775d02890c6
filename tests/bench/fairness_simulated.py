"""What a tenant at ten times its share does to another one, simulated: exact, the same on any machine.

Two workers with steps of 2,048 tokens compute about 15 prompts a second. For shares of a tenant from a fifteenth to two
fifths of that it compares both tenants at their share with the loud one at `--times` its share; in both the quiet
tenant sends the same requests. `loud_alone` is what the loud tenant gets with nobody beside it: `total_of_alone` tells
how much of the cell's speed shorter steps leave. `fairness` measures the same on a live cell.
"""

import argparse
import json
import sys

from tests.support.two_tenants import LOUD, QUIET, both_ways, ratio, simulate

SHARES = (1.0, 3.0, 5.0, 6.0)


def run(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog="fairness_simulated", description=__doc__)
    parser.add_argument("--share", type=float, nargs="+", default=SHARES, help="a tenant's share, requests per second")
    parser.add_argument("--times", type=float, default=10.0, help="how many times its share the loud tenant sends")
    parser.add_argument("--samples", type=int, default=1000, help="about how many requests the quiet tenant sends")
    options = parser.parse_args(arguments or [])
    told: dict[str, object] = {
        "compared": f"both tenants at their share against one of them at {options.times:g} times its share",
    }
    for share in options.share:
        print(f"share {share:g}", file=sys.stderr, flush=True)
        seconds = options.samples / share
        both = both_ways(share, options.times, seconds)
        alone = simulate({LOUD: share * options.times}, seconds)[LOUD]
        total = sum([one.prompt_tokens_per_s for one in both["flooded"].values()])
        told[f"share_per_s_{share:g}"] = {
            **{way: {tenant: one.figures() for tenant, one in served.items()} for way, served in both.items()},
            "loud_alone": alone.figures(),
            "quiet_ttft_p50_ratio": ratio(both, 0.5),
            "quiet_ttft_p99_ratio": ratio(both, 0.99),
            "quiet_prompt_tokens_ratio": round(
                both["flooded"][QUIET].prompt_tokens_per_s / both["fair"][QUIET].prompt_tokens_per_s, 3
            ),
            "total_of_alone": round(total / alone.prompt_tokens_per_s, 3),
        }
    return told


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
