"""What placement knows of a model's workers, as one table of numbers: a row a quantity, a column a worker.

A decision over hundreds of workers is a few dozen operations on rows. Whoever accounts for a worker writes single
cells of its column; a decision is taken on a copy.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from armature.routing.worker import Role, Worker

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Slots = npt.NDArray[np.int64]

# What a worker is.
BLOCK_SIZE: Final = 0
NUM_BLOCKS: Final = 1
CAPACITY: Final = 2
"""Blocks of the largest prompt that it takes: all of them, none while it drains."""
MAX_BATCH_TOKENS: Final = 3
BLOCK_PULL_S: Final = 4
"""Reading a block from another worker's memory, or that of another node; 0: it can't."""
BLOCK_ONBOARD_S: Final = 5
"""Onboarding a block from host memory (G2); 0: there is none, or that is not measured. Then G3 and G4."""
ONBOARD_LATENCY_S: Final = 8
"""What onboarding from G2 costs besides bytes. Then G3 and G4."""
# How fast it is.
BLOCK_READ_S: Final = 11
"""Reading a block that a prefill worker has computed."""
TOKEN_S: Final = 12
"""Computing a prompt token, attention apart."""
PAIR_S: Final = 13
"""Attention of a prompt token to one before it."""
CHUNK_S: Final = 14
"""What a step that computes a prompt takes besides: its fixed part, and the answers that grow in it."""
FIRST_S: Final = 15
"""The step that yields the first token after the prompt's last one; 0 where it is the same step."""
DECODE_STEP_S: Final = 16
STREAM_S: Final = 17
"""What one more answer adds to a step."""
CONTEXT_S: Final = 18
"""What a token of its context adds to that."""
REFERENCE_S: Final = 19
"""A given prompt, computed alone: for comparing workers. 0: its steps are not measured."""
# What it has to do.
BUSY_UNTIL_S: Final = 20
STREAMS: Final = 21
"""Answers that grow there, and those that will once their prompts are computed."""
WAITING: Final = 22
MAX_SEQS: Final = 23
"""Places in its batch."""
FREE_BLOCKS: Final = 24
"""Blocks left once everybody known has his; negative when they wait for some."""
REQUESTS: Final = 25
"""Requests of this router that have not ended there."""
LAST_PLACED_S: Final = 26
TURN: Final = 27
"""The number of the latest placement on it; -1: none."""
PREFILL_TOKENS: Final = 28
"""Tokens of placed prompts that are not computed, those found in the cache left out."""
ACTIVE_BLOCKS: Final = 29
"""Distinct blocks of requests in flight, where that is counted; else blocks in use as reported."""

IS_DECODE: Final = 30
"""1 if it is to decode only, else 0."""

NUM_ROWS: Final = 31


class Group(NamedTuple):
    """Workers between which blocks move, as ranges of columns."""

    first_decoder: int
    end_decoder: int
    first_prefiller: int
    end_prefiller: int


class Roster(NamedTuple):
    """Who has which column: decode workers first, each part in order of fingerprint, role and id."""

    worker_ids: tuple[str, ...]
    num_decoders: int
    """Workers that produce tokens."""
    groups: tuple[Group, ...]
    """Decode workers that have prefill workers to help them, and those."""
    peers: tuple[tuple[int, int], ...]
    """Ranges of columns of decode workers with one fingerprint, which could read from each other."""
    kinds: dict[bytes, tuple[int, int]]
    """By fingerprint, the range of columns of all decode workers that have it."""
    slots: dict[str, int]
    """Column by worker id."""


def roster_of(workers: Sequence[Worker]) -> Roster:
    """Give each worker of a model its column."""
    ordered = sorted(workers, key=_place)
    decoders = [worker for worker in ordered if worker.role is not Role.PREFILL]
    fingerprints = dict.fromkeys(worker.fingerprint for worker in ordered)
    groups: list[Group] = []
    kinds: dict[bytes, tuple[int, int]] = {}
    for fingerprint in fingerprints:
        of = {role: _range(ordered, role, fingerprint) for role in Role}
        if of[Role.DECODE] and of[Role.PREFILL]:
            groups.append(Group(*of[Role.DECODE], *of[Role.PREFILL]))
        both = [edge for role in (Role.AGGREGATED, Role.DECODE) for edge in of[role]]
        if both:
            kinds[fingerprint] = min(both), max(both)
    worker_ids = tuple(worker.worker_id for worker in ordered)
    slots = {worker_id: slot for slot, worker_id in enumerate(worker_ids)}
    peers = tuple([(first, end) for first, end in kinds.values() if end - first > 1])
    return Roster(worker_ids, len(decoders), tuple(groups), peers, kinds, slots)


def _place(worker: Worker) -> tuple[bool, bytes, Role, str]:
    return worker.role is Role.PREFILL, worker.fingerprint, worker.role, worker.worker_id


def _range(ordered: Sequence[Worker], role: Role, fingerprint: bytes) -> tuple[int, ...]:
    slots = [n for n, worker in enumerate(ordered) if (worker.role, worker.fingerprint) == (role, fingerprint)]
    return (slots[0], slots[-1] + 1) if slots else ()
