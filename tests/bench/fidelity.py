"""The simulator against a live cell: the same trace, policy and performance model, side by side.

Live: gateway, router, kv-index and etcd as processes, and simulated workers, which take the performance model's time
asleep. `late_s` tells whether the machine kept up: if it did not, the comparison says nothing.

    python -m tests.bench fidelity
    python -m tests.bench.fidelity --speed-up 0.5 --rate 3 --workers 4
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.support.fidelity import Setting, figures, live, simulate


def compare(setting: Setting) -> dict[str, Any]:
    trace = setting.load_trace()
    simulated = simulate(setting, trace)
    with tempfile.TemporaryDirectory() as folder:
        served, lag_s = asyncio.run(live(setting, trace, Path(folder)))
    ours, theirs = figures(simulated, setting.speed_up), figures(served, setting.speed_up)
    return {
        "requests": len(trace.requests),
        "workers": setting.workers,
        "policy": setting.policy,
        "rate": setting.rate,
        "speed_up": setting.speed_up,
        "errors": {
            "simulated": sum(bool(one.error) for one in simulated),
            "live": [o.error for o in served if o.error],
        },
        "late_s": {"sending": max(one.sent_s - one.arrival_s for one in served), "engines_mean": lag_s},
        "simulated": _rounded(ours),
        "live": _rounded(theirs),
        "live_over_simulated": _rounded({name: theirs[name] / ours[name] for name in ours if ours[name]}),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def run() -> dict[str, Any]:
    return compare(Setting())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("trace", "limit", "workers", "rate", "speed_up", "policy"):
        default = getattr(Setting, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=Path if name == "trace" else type(default), default=default
        )
    print(json.dumps(compare(Setting(**vars(parser.parse_args()))), indent=2))


if __name__ == "__main__":
    main()
