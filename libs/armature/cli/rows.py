"""The table of a cell: what is known of each process, put together from three sources. Decides, reads nothing.

The supervisor knows pids and restarts, etcd who is a member and in what state, a process's metrics its load.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from armature.cli.state import ProcessState
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member, Role

RUNNING = "armature_worker_running_seqs"
WAITING = "armature_worker_waiting_seqs"
FREE_BLOCKS = "armature_worker_free_blocks"
TOTAL_BLOCKS = "armature_worker_total_blocks"
DECODE_TOKENS = "armature_worker_decode_tokens_total"
PREFILL_TOKENS = "armature_worker_prefill_tokens_total"
CACHED_TOKENS = "armature_worker_cached_tokens_total"
METRICS = (RUNNING, WAITING, FREE_BLOCKS, TOTAL_BLOCKS, DECODE_TOKENS, PREFILL_TOKENS, CACHED_TOKENS)

HEADERS = (
    "service",
    "id",
    "address",
    "pid",
    "role",
    "state",
    "run+wait",
    "kv",
    "cached tokens",
    "tokens/s",
    "restarts",
)
Samples = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One line, in the order of `HEADERS`, as text."""

    cells: tuple[str, ...]
    is_well: bool


class Rates:
    """Tokens per second of each member between two looks; a restarted process begins anew."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, float]] = {}

    def tokens_per_s(self, member_id: str, samples: Samples, now_s: float) -> float | None:
        """Tokens computed or produced per second since the last call, None at the first."""
        tokens = samples.get(DECODE_TOKENS, 0.0) + samples.get(PREFILL_TOKENS, 0.0)
        before = self._last.get(member_id)
        self._last[member_id] = (now_s, tokens)
        if before is None or now_s <= before[0]:
            return None
        return max(0.0, tokens - before[1]) / (now_s - before[0])


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at the cell has found, by member id."""

    members: Mapping[str, Member] | None = None
    """None: etcd did not answer."""
    samples: Mapping[str, Samples] = field(default_factory=dict[str, Samples])
    rates: Mapping[str, float | None] = field(default_factory=dict[str, float | None])


def rows(processes: Iterable[ProcessState], seen: Seen | None = None) -> list[Row]:
    """One row a process; what is not known shows as nothing."""
    return [_row(process, seen or Seen()) for process in processes]


def _row(process: ProcessState, seen: Seen) -> Row:
    member = (seen.members or {}).get(process.member_id)
    samples = seen.samples.get(process.member_id, {})
    rate = seen.rates.get(process.member_id)
    role = Role.Name(member.worker.role).removeprefix("ROLE_").lower() if member and member.HasField("worker") else ""
    state = _state(process, seen.members, member)
    cells = (
        process.name,
        process.member_id.replace(f"{process.kind}-", ""),
        process.address,
        str(process.pid or ""),
        role,
        state,
        *(_load(samples) if samples.get(TOTAL_BLOCKS) else ("", "", "")),
        f"{rate:.0f}" if rate is not None else "",
        str(process.restarts or ""),
    )
    return Row(cells, is_well=state == "ready")


def _state(process: ProcessState, members: Mapping[str, Member] | None, member: Member | None) -> str:
    if process.state != "ready" or not process.member_id or members is None:
        return process.state
    if "," in process.member_id:
        return _state_of_several(process, members)
    if member is None:
        return "not registered"  # it runs, but nobody in the cell can find it
    return "draining" if member.state == MEMBER_STATE_DRAINING else "ready"


def _state_of_several(process: ProcessState, members: Mapping[str, Member]) -> str:
    """Processes behind one port. One that has died is started again, under an id that nobody here has heard of."""
    wanted = process.member_id.count(",") + 1
    ready = sum(one.kind == process.kind and one.state != MEMBER_STATE_DRAINING for one in members.values())
    return "ready" if ready == wanted else f"{ready} of {wanted} ready"


def _load(samples: Samples) -> tuple[str, str, str]:
    total = samples[TOTAL_BLOCKS]
    used = 1 - samples.get(FREE_BLOCKS, 0.0) / total
    cached = f"{samples.get(CACHED_TOKENS, 0.0):.0f}"
    return f"{samples.get(RUNNING, 0.0):.0f}+{samples.get(WAITING, 0.0):.0f}", f"{used:.0%}", cached
