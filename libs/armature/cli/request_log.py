"""Mooncake's traces and our own request logs: lines of JSON with the same first keys.

A Mooncake trace numbers the contents of blocks of 512 tokens, a partial one at the end included, and is in order of
arrival. A request log says its `block_size`, has 64-bit sequence hashes of whole blocks only, is in order of ends, and
its times are Unix times. Requests that were never answered say nothing of how long they would have run: left out.
"""

from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path

import msgspec

from armature.cli.options import UsageError
from armature.sim.trace import FIRST_ANSWER, Trace, TraceRequest

MOONCAKE_BLOCK_SIZE = 512


class _Line(msgspec.Struct):
    timestamp: float
    """Milliseconds."""
    input_length: int
    output_length: int
    hash_ids: list[int]
    block_size: int = 0
    """0: a Mooncake trace."""
    tenant: str = ""
    session_id: str = ""
    priority: int = 0


def read_jsonl(path: Path, lines: Iterable[str]) -> Trace:
    """The trace, its requests in order of arrival.

    Raises:
        UsageError: a line makes no sense.
    """
    numbered = _decoded(path, lines)
    first = next(numbered, None)
    if first is None:
        raise UsageError(f"{path} has no requests")
    rest = (first, *numbered)
    if not first[1].block_size:
        return _numbered(path, rest)
    return _logged(path, rest)


def _decoded(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, _Line]]:
    decoder = msgspec.json.Decoder(_Line)
    block_size: int | None = None
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
        block_size = line.block_size if block_size is None else block_size
        if line.block_size != block_size or line.block_size < 0:
            told = f"block_size is {line.block_size or 'absent'}, in the first line {block_size or 'absent'}"
            raise UsageError(f"{path}, line {number}: {told}; it must be at least 1 and the same in all lines")
        yield number, line


def _numbered(path: Path, lines: Iterable[tuple[int, _Line]]) -> Trace:
    requests: list[TraceRequest] = []
    for number, line in lines:
        if min(line.hash_ids, default=0) < 0 or max(line.hash_ids, default=0) >= FIRST_ANSWER:
            limit = f"below 0 or above {FIRST_ANSWER - 1}"
            raise UsageError(
                f"{path}, line {number}: hash_ids: a hash id is {limit}; a request log says its block_size"
            )
        one = _request(f"{path}, line {number}", line, line.timestamp / 1000, line.hash_ids)
        latest_s = requests[-1].arrival_s if requests else 0.0
        if one.arrival_s < latest_s:
            late = f"timestamp: it arrives {latest_s - one.arrival_s:.3f} s before the last"
            raise UsageError(f"{path}, line {number}: {late}")
        requests.append(one)
    return Trace(requests, MOONCAKE_BLOCK_SIZE)


def _logged(path: Path, lines: Iterable[tuple[int, _Line]]) -> Trace:
    answered = [(number, line) for number, line in lines if line.output_length]
    start_ms = min([line.timestamp for _, line in answered], default=0.0)
    contents: dict[int, int] = {}
    requests: list[TraceRequest] = []
    next_content, block_size = 0, 0
    for number, line in answered:
        block_size = line.block_size
        num_blocks = line.input_length // block_size
        if len(line.hash_ids) != num_blocks:
            given = f"hash_ids: there are {len(line.hash_ids)}"
            told = f"{line.input_length} tokens are {num_blocks} whole blocks of {block_size}"
            raise UsageError(f"{path}, line {number}: {given}; {told}")
        numbers: list[int] = []
        for block in line.hash_ids:
            if block not in contents:
                contents[block], next_content = next_content, next_content + 1
            numbers.append(contents[block])
        if line.input_length % block_size:
            # Nobody has hashed the partial block: it is like no other.
            numbers.append(next_content)
            next_content += 1
        requests.append(_request(f"{path}, line {number}", line, (line.timestamp - start_ms) / 1000, numbers))
    requests.sort(key=attrgetter("arrival_s"))
    return Trace(requests, block_size)


def _request(where: str, line: _Line, arrival_s: float, contents: list[int]) -> TraceRequest:
    if not -10 <= line.priority <= 10:
        raise UsageError(f"{where}: priority is {line.priority}; it must be from -10 to 10")
    lengths = (line.input_length, line.output_length)
    one = TraceRequest(arrival_s, *lengths, contents, line.tenant, line.session_id, line.priority)
    try:
        one.check(line.block_size or MOONCAKE_BLOCK_SIZE)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error
    return one
