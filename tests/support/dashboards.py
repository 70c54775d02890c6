"""What the Grafana dashboards ask Prometheus for."""

import json
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "k8s" / "components" / "monitoring" / "dashboards.py"
BOARDS = sorted((SOURCE.parent / "dashboards").glob("*.json"))


def queries(board: Path) -> Iterator[str]:
    """As Prometheus gets them."""
    for panel in json.loads(board.read_text())["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m")
