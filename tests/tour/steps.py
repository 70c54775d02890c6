"""What a tour consists of, and how one client's part of it is run and told. Standard library only.

Each client is a process of its own: some bring stubs with the names of ours, some can't be installed beside the others.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CLIENTS = ("openai", "anthropic", "kserve", "litellm")
"""Each a module `<name>_tour` here, with its `STEPS`."""
KEY_ENV = "ARMATURE_API_KEY"
TIMEOUT_S = 300.0

QUESTION = "What does os.path.join do?"
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["function", "module"]}, "arguments": {"type": "integer", "maximum": 9}},
    "required": ["kind", "arguments"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Target:
    """The gateway to be toured."""

    url: str
    """Of its HTTP port, like http://127.0.0.1:8000."""
    grpc: str
    """host:port of its gRPC port."""
    model: str = "demo"
    key: str = field(default="unused", repr=False)


Step = Callable[[Target], None]
"""Raises if the gateway does not do what the function's name says."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    client: str
    step: str
    error: str
    """Empty: it passed."""
    seconds: float


def main(client: str, steps: Sequence[Step]) -> None:
    """One client's part: `URL GRPC MODEL` on the command line, a line of JSON for each step."""
    target = Target(*sys.argv[1:4], key=os.environ.get(KEY_ENV) or "unused")
    for step in steps:
        started_s, error = time.monotonic(), ""
        try:
            step(target)
        except Exception as raised:
            where = traceback.extract_tb(raised.__traceback__)[-1]
            error = f"{type(raised).__name__}: {raised} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        name = step.__name__.replace("_", " ")
        print(json.dumps(asdict(Outcome(client, name, error, time.monotonic() - started_s))), flush=True)


async def run_client(client: str, target: Target, python: str = sys.executable) -> list[Outcome]:
    """Run one client's part with an interpreter that has it installed.

    Raises:
        RuntimeError: it broke off; the message has what it said last.
    """
    child = await asyncio.create_subprocess_exec(
        python, "-m", f"tests.tour.{client}_tour", target.url, target.grpc, target.model,
        env={**os.environ, KEY_ENV: target.key}, start_new_session=True,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(child.communicate(), TIMEOUT_S)
    except TimeoutError:
        child.kill()
        raise RuntimeError(f"the tour of {client} took longer than {TIMEOUT_S:g} s") from None
    lines = [line for line in out.decode().splitlines() if line.startswith('{"client": ')]
    if child.returncode or not lines:
        raise RuntimeError(f"the tour of {client} broke off: {err.decode()[-2000:]}")
    return [Outcome(**json.loads(line)) for line in lines]


def arguments() -> argparse.ArgumentParser:
    """Of the whole tour."""
    parser = argparse.ArgumentParser(prog="python -m tests.tour", description=__doc__)
    parser.add_argument("clients", nargs="*", default=[], metavar="CLIENT", help=f"of {', '.join(CLIENTS)}")
    parser.add_argument("--url", default="", help="of a gateway (default: that of the running cell)")
    parser.add_argument("--grpc", default="", metavar="HOST:PORT", help="of the same gateway, with --url")
    parser.add_argument("--model", default="", help="what to ask for (default: the cell's)")
    parser.add_argument("--namespace", default="default", help="the running cell's name")
    parser.add_argument(
        "--state-dir", default=".armature", metavar="DIR", help="where the running cell keeps its state"
    )
    parser.add_argument("--litellm-python", default="", metavar="FILE", help="interpreter that has LiteLLM")
    return parser
