"""`python -m tests.campaigns.fleet_sizes`: how well fleets are sized for two public traces, many users of each at once.

Every seed shifts the copies of a trace otherwise. Each is replayed in outline (`--full`: in all detail, which takes
many times as long) under the planner, a fixed fleet, a threshold, means in the manner of Dynamo, and foresight, whose
margin is searched for the fewest GPU-hours that meet 99 % of the windows. All begin with the fixed fleet; the first
minutes are not told. Prints progress on stderr, then a table and JSON. What is in `--results` already is not run again:
after a change of code begin with an empty folder.
"""

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from armature.cli.sizing import RIVALS, Rehearsal
from armature.cli.trace_files import read_trace
from armature.performance.presets import PRESETS
from armature.planning.capacity import Targets
from armature.planning.fleet import Counts, WorkerKind
from armature.runtime.policies import load_planner_policy, load_policy
from armature.sim.cell import CellShape
from armature.sim.superposition import superposed
from armature.sim.worker import WorkerShape

PRESET = PRESETS["qwen3-32b-tp2-h200"]
START_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace, as many copies of it as need tens of workers, and what its users are promised."""

    file: str
    copies: int
    targets: Targets
    step_tokens: int
    """Most tokens of a step, as an operator sets it for these targets: answers feel every long step beside them."""


WORKLOADS = {
    "conversation": Workload("mooncake_conversation.jsonl", 6, Targets(ttft_s=8.0, itl_s=0.1), 8192),
    "code": Workload("azure_2023_code.csv", 60, Targets(ttft_s=2.0, itl_s=0.1), 1024),
}
Result = dict[str, dict[str, Any]]
"""By way: `met` and `windows`, `gpu_hours`, `most` and `mean` workers."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="fleet-sizes", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, help=f"folder of {[w.file for w in WORKLOADS.values()]}")
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--seeds", default="131,132,133,134,135")
    parser.add_argument("--planner", default="usual", help="policy, by name or file")
    parser.add_argument("--against", default=",".join(RIVALS))
    parser.add_argument("--duration-s", type=float, default=1560.0)
    parser.add_argument("--warm-up-s", type=float, default=360.0)
    parser.add_argument("--copies", type=int, default=0, help="instead of the usual number")
    parser.add_argument("--step-tokens", type=int, default=0, help="most in a step, instead of what fits the targets")
    parser.add_argument("--full", action="store_true", help="in all detail")
    parser.add_argument("--results", type=Path, required=True, help="folder that keeps what has been run")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    for name in args.workloads.split(","):
        results = [_result(args, name, int(seed)) for seed in args.seeds.split(",")]
        told[name] = {way: summed(results, way) for way in results[0]}
        sys.stderr.write(f"\n{name}\n{table(told[name])}\n")
    print(json.dumps(told, indent=2))


def _result(args: argparse.Namespace, name: str, seed: int) -> Result:
    kept = args.results / f"{name}-{seed}.json"
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("results", "seeds", "workloads")}
    if kept.exists() and (known := json.loads(kept.read_text()))["settings"] == settings:
        return known["result"]
    sys.stderr.write(f"{name}, seed {seed}\n")
    rehearsal = _rehearsal(args, name, seed)
    result: Result = {}
    for way, sized in rehearsal.run([one for one in args.against.split(",") if one]).items():
        sizing = sized.sizing
        missed = [asdict(window) for window in sizing.windows if not window.is_met]
        numbers = {"gpu_hours": sizing.gpu_hours, "most": sizing.most_workers, "mean": sizing.mean_workers}
        met = len(sizing.windows) - len(missed)
        result[way] = {"met": met, "windows": len(sizing.windows), **numbers, "missed": missed}
    kept.write_text(json.dumps({"settings": settings, "result": result}, indent=1))
    return result


def _rehearsal(args: argparse.Namespace, name: str, seed: int) -> Rehearsal:
    load = WORKLOADS[name]
    trace = superposed(read_trace(args.traces / load.file), args.copies or load.copies, random.Random(seed))
    trace = trace.cut_out(0.0, args.duration_s)
    shape = WorkerShape(
        block_size=trace.block_size,
        num_blocks=PRESET.kv_tokens // trace.block_size,
        max_num_batched_tokens=args.step_tokens or load.step_tokens,
    )
    policy = replace(load_planner_policy(args.planner), targets=load.targets, start_up_s=START_UP_S)
    room = CellShape(
        num_workers=policy.limits.max_workers,
        worker=shape,
        performance=PRESET.performance,
        model=PRESET.model,
        block_bytes=trace.block_size * PRESET.token_bytes,
    )
    kind = WorkerKind(
        performance=PRESET.performance,
        kv_tokens=shape.num_blocks * shape.block_size,
        gpus=PRESET.gpus,
        max_num_batched_tokens=shape.max_num_batched_tokens,
    )
    return Rehearsal(
        trace, room, kind, policy, load_policy("seconds"), Counts(), START_UP_S, seed,
        lambda text: print(f"  {text}", file=sys.stderr, flush=True), not args.full, args.warm_up_s,
    )  # fmt: skip


def summed(results: Sequence[Result], way: str) -> dict[str, Any]:
    """All seeds of a way together; ratios are to the same seed's foresight."""
    ratios = [one[way]["gpu_hours"] / one["foresight"]["gpu_hours"] for one in results if "foresight" in one]
    hours = sum([one[way]["gpu_hours"] for one in results])
    best = sum([one["foresight"]["gpu_hours"] for one in results if "foresight" in one])
    return {
        "met": sum([one[way]["met"] for one in results]),
        "windows": sum([one[way]["windows"] for one in results]),
        "gpu_hours": round(hours, 2),
        "most": max([one[way]["most"] for one in results]),
        "ratio": round(hours / best, 3) if best else None,
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """For people."""
    lines = [
        "| sized by | windows met | GPU-hours | most workers | x foresight (least to most by seed) |",
        "|---|" + "---|" * 4,
    ]
    for way, row in rows.items():
        share = f"{row['met']} of {row['windows']} ({row['met'] / row['windows']:.1%})"
        spread = f"{row['ratio']:.2f} ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})" if row["ratios"] else "-"
        lines.append(f"| {way} | {share} | {row['gpu_hours']:.1f} | {row['most']} | {spread} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
