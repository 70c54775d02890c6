"""Reads recorded traffic. Every complaint names the file and the line."""

import csv
import datetime
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from armature.cli.options import UsageError
from armature.sim.trace import Trace, TraceRequest

# Mooncake traces number the contents of blocks of this size.
MOONCAKE_BLOCK_SIZE = 512
_AZURE_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path, *, block_size: int = 0, limit: int = 0) -> Trace:
    """A Mooncake trace (`.jsonl`) or an Azure one (`.csv`), its first `limit` requests if that is not 0.

    `block_size` is what prompts are cut into: the Mooncake format has its own, Azure traces take any.

    Raises:
        UsageError: the file can't be read, or a line makes no sense.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"{path} is neither a Mooncake trace (.jsonl) nor an Azure one (.csv)")
    if path.suffix == ".jsonl" and block_size not in (0, MOONCAKE_BLOCK_SIZE):
        raise UsageError(f"block size {block_size} does not fit {path}: Mooncake traces have {MOONCAKE_BLOCK_SIZE}")
    block_size = block_size or MOONCAKE_BLOCK_SIZE
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            reader = _mooncake(path, lines) if path.suffix == ".jsonl" else _azure(path, lines, block_size)
            requests = list(islice(_checked(path, reader, block_size), limit or None))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not requests:
        raise UsageError(f"{path} has no requests")
    return Trace(requests, block_size)


def _checked(path: Path, reader: Iterable[tuple[int, TraceRequest]], block_size: int) -> Iterator[TraceRequest]:
    latest_s = 0.0
    for number, request in reader:
        try:
            request.check(block_size)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        if request.arrival_s < latest_s:
            raise UsageError(f"{path}, line {number}: it arrives {latest_s - request.arrival_s:.3f} s before the last")
        latest_s = request.arrival_s
        yield request


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, TraceRequest]]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            one = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        if min(one.hash_ids, default=0) < 0 or max(one.hash_ids, default=0) >= 1 << 31:
            raise UsageError(f"{path}, line {number}: a hash id is below 0 or above {(1 << 31) - 1}")
        yield number, TraceRequest(one.timestamp / 1000, one.input_length, one.output_length, one.hash_ids)


def _azure(path: Path, lines: Iterable[str], block_size: int) -> Iterator[tuple[int, TraceRequest]]:
    """Azure traces tell nothing of contents: no two blocks are alike."""
    rows = csv.reader(lines)
    header = next(rows, [])
    if header != _AZURE_COLUMNS:
        raise UsageError(f"{path}, line 1: the columns are {header}; they must be {_AZURE_COLUMNS}")
    start: datetime.datetime | None = None
    next_content = 0
    for row in rows:
        number = rows.line_num
        try:
            time, prompt_tokens, output_tokens = row
            # Seven decimals; Python takes six.
            arrival = datetime.datetime.fromisoformat(time[:26])
            prompt, output = int(prompt_tokens), int(output_tokens)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        start = start or arrival
        num_blocks = -(-prompt // block_size)
        contents = range(next_content, next_content + max(num_blocks, 0))
        next_content += max(num_blocks, 0)
        yield number, TraceRequest((arrival - start).total_seconds(), prompt, output, contents)
