"""What the Grafana dashboards ask Prometheus for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "k8s" / "components" / "monitoring" / "dashboards.py"
BOARDS = sorted((SOURCE.parent / "dashboards").glob("*.json"))


def metrics_asked_for() -> set[str]:
    """The names of all metrics that any board asks for, as a process exposes them."""
    found = {name for board in BOARDS for query in queries(board) for name in re.findall(r"armature_\w+", query)}
    return {name.removesuffix("_bucket") for name in found}


def exposed(page: str) -> set[str]:
    """The names of all metrics on a page that Prometheus scrapes."""
    return set(re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE))


def queries(board: Path) -> Iterator[str]:
    """As Prometheus gets them."""
    for panel in json.loads(board.read_text())["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m")
