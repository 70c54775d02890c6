"""All benchmarks, one after another in one run: `python -m tests.bench [NAME ...]`. Prints one JSON object.

What follows a single name goes to that benchmark, if it takes options: `python -m tests.bench index --help`.
"""

import importlib
import json
import os
import platform
import sys

NAMES = (
    "gateway",
    "routing",
    "transfer",
    "handoff",
    "engine",
    "scheduling",
    "queue",
    "fairness",
    "fairness_simulated",
    "isolation",
    "tenancy",
    "recovery",
    "fidelity",
    "offload",
    "index",
    "steps",
    "sampler",
    "router",
    "offload_cell",
)


def main() -> None:
    arguments = sys.argv[1:]
    if len(arguments) > 1 and arguments[1].startswith("-"):
        names, options = arguments[:1], [arguments[1:]]
    else:
        names, options = arguments or NAMES, []
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise SystemExit(f"unknown benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    results: dict[str, object] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in names:
        print(f"running {name}", file=sys.stderr, flush=True)
        results[name] = importlib.import_module(f"tests.bench.{name}").run(*options)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
