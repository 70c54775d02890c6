"""`python -m tests.campaigns.gateway`: whatever clients send and however they leave, a gateway stays as it was.

A gateway process before two simulated workers gets bodies, framings and messages that are wrong in every way we could
think of, clients that leave, clients that do not read, and schemathesis with its own document. Prints one JSON object;
exits with 1 if anything was found or its memory has grown, by the rules of `flatness`. Equal seeds send equal requests.
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from armature.runtime.processes import start_etcd
from tests.campaigns.gateway.run import campaign, fuzzed_cell


async def main() -> int:
    parser = argparse.ArgumentParser(prog="fuzz-gateway", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bodies", type=int, default=10_000, help="requests over HTTP")
    parser.add_argument("--messages", type=int, default=10_000, help="calls over gRPC")
    parser.add_argument("--clients", type=int, default=1000, help="clients that leave")
    parser.add_argument("--slow-readers", type=int, default=50, help="clients that hold answers without reading")
    parser.add_argument("--examples", type=int, default=30, help="of schemathesis, for each operation; 0: without")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        etcd = await start_etcd(Path(name) / "etcd")
        try:
            async with fuzzed_cell(Path(name) / "fuzz", etcd.address) as cell:
                result = await campaign(cell, **vars(options))
        finally:
            await etcd.stop()
    is_flat = all(part["is_flat"] for part in result["growth"].values())
    print(json.dumps({**result, "is_flat": is_flat}, indent=2))
    return 0 if is_flat and not result["failures"] else 1


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
