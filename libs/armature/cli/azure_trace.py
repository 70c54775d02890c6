"""Azure's traces of LLM inference, 2023: times and lengths, and nothing of contents, so no two blocks are alike."""

import csv
import datetime
from collections.abc import Iterable
from pathlib import Path

from armature.cli.options import UsageError
from armature.sim.trace import Trace, TraceRequest

_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


def read_azure(path: Path, lines: Iterable[str], block_size: int) -> Trace:
    """The trace, cut into blocks of that size.

    Raises:
        UsageError: a line makes no sense.
    """
    rows = csv.reader(lines)
    header = next(rows, [])
    if header != _COLUMNS:
        raise UsageError(f"{path}, line 1: the columns are {header}; they must be {_COLUMNS}")
    requests: list[TraceRequest] = []
    start: datetime.datetime | None = None
    next_content = 0
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if len(row) != len(_COLUMNS):
            raise UsageError(f"{where}: there are {len(row)} columns; there must be {len(_COLUMNS)}")
        arrival = _time(where, row[0])
        prompt_tokens, output_tokens = _count(where, _COLUMNS[1], row[1]), _count(where, _COLUMNS[2], row[2])
        start = start or arrival
        num_blocks = max(-(-prompt_tokens // block_size), 0)
        contents = range(next_content, next_content + num_blocks)
        next_content += num_blocks
        one = TraceRequest((arrival - start).total_seconds(), prompt_tokens, output_tokens, contents)
        try:
            one.check(block_size)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
        if requests and one.arrival_s < requests[-1].arrival_s:
            raise UsageError(f"{where}: TIMESTAMP: it is before that of the last line")
        requests.append(one)
    return Trace(requests, block_size)


def _time(where: str, text: str) -> datetime.datetime:
    try:
        # Seven decimals; Python takes six.
        return datetime.datetime.fromisoformat(text[:26])
    except ValueError as error:
        raise UsageError(f"{where}: TIMESTAMP: {error}") from error


def _count(where: str, column: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{where}: {column} is {text!r}; it must be a whole number") from error
