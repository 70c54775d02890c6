"""All benchmarks, one after another in one run: `python -m tests.bench [NAME ...]`. Prints one JSON object."""

import importlib
import json
import os
import platform
import sys

NAMES = ("gateway", "routing", "transfer", "handoff", "engine", "scheduling", "recovery", "fidelity")


def main() -> None:
    names = sys.argv[1:] or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise SystemExit(f"unknown benchmark {unknown[0]}; there are {', '.join(NAMES)}")
    results: dict[str, object] = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in names:
        print(f"running {name}", file=sys.stderr, flush=True)
        results[name] = importlib.import_module(f"tests.bench.{name}").run()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
