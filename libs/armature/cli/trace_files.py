"""Reads recorded traffic. Every complaint names the file and the line."""

from pathlib import Path

from armature.cli.azure_trace import read_azure
from armature.cli.options import UsageError
from armature.cli.request_log import read_jsonl
from armature.sim.trace import Trace

DEFAULT_BLOCK_SIZE = 512


def read_trace(path: Path, *, block_size: int = 0) -> Trace:
    """A Mooncake trace or a request log (`.jsonl`), or an Azure trace (`.csv`).

    `block_size` is what Azure traces are cut into, 0 the usual one; what has blocks of its own must have that size.

    Raises:
        UsageError: the file can't be read, or a line makes no sense.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"{path} is no trace: neither Mooncake's or a request log (.jsonl) nor Azure's (.csv)")
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            if path.suffix == ".jsonl":
                trace = read_jsonl(path, lines)
            else:
                trace = read_azure(path, lines, block_size or DEFAULT_BLOCK_SIZE)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not len(trace.requests):
        raise UsageError(f"{path} has no requests")
    if block_size not in (0, trace.block_size):
        raise UsageError(f"block size {block_size} does not fit {path}: its blocks have {trace.block_size} tokens")
    return trace
