"""The one line with which a service says that it serves: `READY <kind> <member_id> grpc=<host:port> ...`."""

from dataclasses import dataclass

PREFIX = "READY "


@dataclass(frozen=True, slots=True)
class Ready:
    """Who a process is in the cell and where it serves; an address that it has not is empty."""

    kind: str
    member_id: str
    grpc: str = ""
    metrics: str = ""
    http: str = ""


def parse_ready(line: str) -> Ready:
    """Read the line; unknown addresses are ignored.

    Raises:
        ValueError: it is not such a line.
    """
    word, *rest = line.split()
    if word != PREFIX.strip() or len(rest) < 2:
        raise ValueError(f"expected 'READY <kind> <member_id> ...', got {line!r}")
    kind, member_id, *pairs = rest
    addresses = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Ready(kind, member_id, addresses.get("grpc", ""), addresses.get("metrics", ""), addresses.get("http", ""))
