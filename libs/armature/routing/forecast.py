"""The ways there are to serve a prompt, and how long each phase of each would take.

A way is a worker that decodes and, if the prompt is not computed there, a prefill worker whose blocks it reads. All
times are predictions from each worker's own measurements. Nothing is decided here but where a part of a prompt comes
from that the worker does not hold: from its own node's lower tiers, from a peer or from another node's kv-offload, if
that is predicted to be faster than computing it.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from armature.routing import columns as at
from armature.routing.checks import check_numbers
from armature.routing.columns import Floats, Group, Slots
from armature.routing.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What no worker measures.

    Raises:
        ValueError: a number is negative or not finite.
    """

    turnover_s: float = 10.0
    """About how long a request occupies a worker: the time in which a full pool becomes free once."""
    remote_overhead_s: float = 0.01
    """What having a prompt computed elsewhere costs besides bytes: two more messages and a lease."""
    pull_latency_s: float = 0.01
    """What reading a prefix from a peer, or from another node's kv-offload, costs besides bytes."""

    def __post_init__(self) -> None:
        check_numbers(self)

    def room_s(self, rows: Floats, blocks: Floats) -> Floats:
        """Until `blocks` blocks and a place in the batch are free on each worker."""
        short_blocks = (blocks - rows[at.FREE_BLOCKS]) / rows[at.NUM_BLOCKS]
        short_seqs = (rows[at.STREAMS] + 1) / rows[at.MAX_SEQS] - 1
        return self.turnover_s * np.maximum(np.maximum(short_blocks, short_seqs), 0.0)


ONBOARDED = ("host_blocks", "disk_blocks", "remote_blocks")
"""By tier below the device."""


class Ways:
    """Ways in a row, phase by phase; a phase that none of them has is None. Arrays are never changed in place."""

    __slots__ = (
        "decode", "disk_blocks", "first_s", "host_blocks", "onboard_s", "overlap", "own_s", "own_tokens", "prefill",
        "prefill_overlap", "prefill_s", "pull_s", "pull_slot", "queue_s", "remote_blocks", "room_s", "rows", "tokens",
        "transfer_s",
    )  # fmt: skip

    def __init__(self, decode: Slots, rows: Floats, overlap: Floats) -> None:
        self.decode = decode
        """Columns of the workers that decode."""
        self.rows = rows
        """The table's rows for those, way by way."""
        self.overlap = overlap
        """Blocks that they hold."""
        self.prefill: Slots | None = None
        """Columns of the workers that compute; -1: the one that decodes. None: all like that."""
        self.prefill_overlap: Floats | None = None
        self.pull_slot: Slots | None = None
        """Whom a prefix is read from, by position in `Snapshot.source_ids`; -1: nobody."""
        self.queue_s: Floats | None = None
        """Behind prompts that came before."""
        self.room_s: Floats | None = None
        """Until blocks and a place in the batch are free."""
        self.onboard_s: Floats | None = None
        self.host_blocks: Floats | None = None
        """Blocks that are onboarded from there. Likewise the next two."""
        self.disk_blocks: Floats | None = None
        self.remote_blocks: Floats | None = None
        self.pull_s: Floats | None = None
        self.prefill_s: Floats | None = None
        """Computing the prompt, wherever that is."""
        self.transfer_s: Floats | None = None
        """What reading a prefill worker's blocks adds, the part hidden behind their computation left out."""
        self.first_s: Floats | None = None
        """The step of the first token, and with it the tail of a prompt that was computed elsewhere."""
        self.tokens: Floats = overlap
        """Prompt tokens to compute."""
        self.own_tokens: Floats = overlap
        """Those of them to compute on the worker that decodes."""
        self.own_s: Floats = overlap
        """How long that takes."""

    def __len__(self) -> int:
        return len(self.decode)


def compute_s(rows: Floats, tokens: Floats, cached_tokens: Floats) -> Floats:
    """Computing so many tokens behind those before them; attention makes long prompts cost more than their length."""
    per_token_s = rows[at.TOKEN_S] + rows[at.PAIR_S] * (cached_tokens + tokens / 2)
    return tokens * per_token_s + np.ceil(tokens / rows[at.MAX_BATCH_TOKENS]) * rows[at.CHUNK_S]


def local_ways(snapshot: Snapshot, slots: Slots, forecast: Forecast) -> Ways:
    """The prompt is computed where it is decoded; one way for each of the columns."""
    state, overlap, queue_s, needed = snapshot.state, snapshot.overlap, snapshot.queue_s, snapshot.needed_blocks
    if len(slots) < state.shape[1]:
        # [:, slots] takes four times as long.
        state, overlap, queue_s, needed = state.take(slots, axis=1), overlap[slots], queue_s[slots], needed[slots]
    ways = Ways(slots, state, overlap)
    block_size, prompt_tokens = state[at.BLOCK_SIZE], snapshot.query.prompt_tokens
    cached = overlap * block_size
    ways.tokens = prompt_tokens - cached
    ways.prefill_s = compute_s(state, ways.tokens, cached)
    _fetch(snapshot, ways, forecast)
    ways.own_tokens, ways.own_s = ways.tokens, ways.prefill_s
    ways.queue_s = queue_s
    if expected_tokens := snapshot.query.hints.expected_output_tokens:
        needed = (prompt_tokens + expected_tokens) // block_size + 1
    ways.room_s = forecast.room_s(state, needed - overlap)
    ways.first_s = state[at.FIRST_S]
    return ways


def _fetch(snapshot: Snapshot, ways: Ways, forecast: Forecast) -> None:
    """Have a part of the prompt read instead of computed, wherever that is faster.

    A worker reads from the tiers of its own node, or from one other source.
    """
    for i, depths in enumerate(snapshot.lower_depths):
        if depths is not None:
            _onboard(snapshot, ways, i, depths[ways.decode])
    block_s = ways.rows[at.BLOCK_PULL_S]
    if not np.count_nonzero(block_s):
        return
    for first, end in snapshot.roster.peers:
        source = first + int(snapshot.overlap[first:end].argmax())
        reach = np.where((ways.decode >= first) & (ways.decode < end), snapshot.overlap[source], 0.0)
        reach = _usable(snapshot, ways, reach)
        _pull(snapshot, ways, source, reach, (reach - ways.overlap) * block_s + forecast.pull_latency_s)
    for source, kept in enumerate(snapshot.kept, len(snapshot.roster.worker_ids)):
        is_reader, reached = kept.readers[ways.decode], ways.overlap
        read_s = np.full(len(ways), forecast.pull_latency_s)
        for depth, (lift_s, latency_s) in zip(kept.depths, kept.lifts, strict=True):
            reach = np.maximum(_usable(snapshot, ways, np.where(is_reader, depth, 0.0)), reached)
            if not (reach > reached).any():
                continue
            # While a run travels, the next one comes up: the slower of the two counts.
            read_s = read_s + (reach - reached) * np.maximum(block_s, lift_s) + (reach > reached) * latency_s
            reached = reach
            _pull(snapshot, ways, source, reached, read_s)


def _onboard(snapshot: Snapshot, ways: Ways, tier: int, depths: Floats) -> None:
    """Read blocks up to these depths from a tier of the worker's own node where that pays."""
    assert ways.prefill_s is not None
    rows, prompt_tokens, block_size = ways.rows, snapshot.query.prompt_tokens, ways.rows[at.BLOCK_SIZE]
    block_s, before = rows[at.BLOCK_ONBOARD_S + tier], ways.tokens
    reached = np.maximum(prompt_tokens - before, _usable(snapshot, ways, depths) * block_size)
    blocks = (reached - (prompt_tokens - before)) / block_size
    read_s = blocks * block_s + rows[at.ONBOARD_LATENCY_S + tier]
    shorter_s = compute_s(rows, prompt_tokens - reached, reached)
    taken = (block_s > 0) & (blocks > 0) & (read_s + shorter_s < ways.prefill_s)
    if not taken.any():
        return
    ways.tokens = np.where(taken, prompt_tokens - reached, before)
    ways.prefill_s = np.where(taken, shorter_s, ways.prefill_s)
    setattr(ways, ONBOARDED[tier], np.where(taken, blocks, 0.0))
    read_s = np.where(taken, read_s, 0.0)
    ways.onboard_s = read_s if ways.onboard_s is None else ways.onboard_s + read_s


def _pull(snapshot: Snapshot, ways: Ways, source: int, reach: Floats, read_s: Floats) -> None:
    """Read a prompt's blocks up to `reach` from a source where that beats what is read so far."""
    assert ways.prefill_s is not None
    rows, prompt_tokens = ways.rows, snapshot.query.prompt_tokens
    reached = reach * rows[at.BLOCK_SIZE]
    shorter_s = compute_s(rows, prompt_tokens - reached, reached)
    so_far_s = sum([part for part in (ways.onboard_s, ways.pull_s) if part is not None], ways.prefill_s)
    taken = (rows[at.BLOCK_PULL_S] > 0) & (reach > ways.overlap) & (read_s + shorter_s < so_far_s)
    if not taken.any():
        return
    ways.tokens = np.where(taken, prompt_tokens - reached, ways.tokens)
    ways.prefill_s = np.where(taken, shorter_s, ways.prefill_s)
    ways.pull_slot = np.where(taken, source, -1 if ways.pull_slot is None else ways.pull_slot)
    ways.pull_s = np.where(taken, read_s, 0.0 if ways.pull_s is None else ways.pull_s)
    for name in ("onboard_s", *ONBOARDED):
        onboarded: Floats | None = getattr(ways, name)
        if onboarded is not None:
            setattr(ways, name, np.where(taken, 0.0, onboarded))


def _usable(snapshot: Snapshot, ways: Ways, depths: Floats) -> Floats:
    """Of a prompt's first blocks, those that need not be computed if they are there."""
    return np.minimum(depths, (snapshot.query.prompt_tokens - 1) // ways.rows[at.BLOCK_SIZE])


class Helpers:
    """Prefill workers that could compute the prompt, each with its side of the times, the same whoever reads."""

    __slots__ = ("num_chunks", "overlap", "prefill_s", "queue_s", "room_s", "slots")

    def __init__(self, snapshot: Snapshot, slots: Slots, forecast: Forecast) -> None:
        rows, self.overlap = snapshot.state.take(slots, axis=1), snapshot.overlap[slots]
        block_size = rows[at.BLOCK_SIZE]
        missing = (snapshot.query.prompt_tokens - 1) // block_size - self.overlap
        tokens = missing * block_size
        self.slots = slots
        self.prefill_s = compute_s(rows, tokens, self.overlap * block_size)
        self.queue_s = snapshot.queue_s[slots]
        self.room_s = forecast.room_s(rows, missing)
        self.num_chunks = np.maximum(np.ceil(tokens / rows[at.MAX_BATCH_TOKENS]), 1.0)
        """Steps in which the prompt is computed, each read while the next is computed."""

    def keep(self, chosen: Slots) -> None:
        """Leave only these, by position."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name)[chosen])


def frontier(snapshot: Snapshot, helpers: Helpers) -> Slots:
    """Positions of those that could be the best for some decode worker: nobody else begins earlier and is faster.

    Every decode worker's cost grows with both, so the best pair is found without trying all pairs. Of equals the one
    with the fewest requests stays, then the one placed on longest ago, then the first by id.
    """
    rows = snapshot.state[:, helpers.slots]
    ready_s = helpers.queue_s + helpers.room_s
    order = np.lexsort((rows[at.TURN], rows[at.REQUESTS], helpers.prefill_s, ready_s))
    compute = helpers.prefill_s[order]
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], compute[:-1])))
    return order[compute < best_before]


def remote_ways(snapshot: Snapshot, group: Group, decoders: Slots, helpers: Helpers, forecast: Forecast) -> Ways | None:
    """Every decode worker of a group with every helper; None if whatever could be read is there already."""
    decoders = decoders[(decoders >= group.first_decoder) & (decoders < group.end_decoder)]
    prompt_tokens = snapshot.query.prompt_tokens
    whole = (prompt_tokens - 1) // snapshot.state[at.BLOCK_SIZE, decoders]
    decoders = decoders[snapshot.overlap[decoders] < whole]
    if not len(decoders) or not len(helpers.slots):
        return None
    count = len(helpers.slots)
    slots, by = np.repeat(decoders, count), np.arange(len(decoders) * count) % count
    rows, overlap = snapshot.state.take(slots, axis=1), snapshot.overlap[slots]
    block_size = rows[at.BLOCK_SIZE]
    whole = (prompt_tokens - 1) // block_size
    ways = Ways(slots, rows, overlap)
    ways.prefill, ways.prefill_overlap, ways.prefill_s = helpers.slots[by], helpers.overlap[by], helpers.prefill_s[by]
    read_s = (whole - overlap) * rows[at.BLOCK_READ_S]
    # A pipeline of two stages over equal chunks: the longer one, and one chunk of the shorter.
    shorter_s = np.minimum(read_s, ways.prefill_s)
    transfer_s = read_s - shorter_s + shorter_s / helpers.num_chunks[by] + forecast.remote_overhead_s
    queue_s, prefill_room_s = helpers.queue_s[by], helpers.room_s[by]
    landed_s = queue_s + prefill_room_s + ways.prefill_s + transfer_s
    ways.transfer_s = transfer_s
    # The tail waits for the prompts that came before on the decode worker too.
    ways.queue_s = queue_s + np.maximum(snapshot.queue_s[slots] - landed_s, 0.0)
    total_tokens = prompt_tokens + snapshot.query.hints.expected_output_tokens
    ways.room_s = prefill_room_s + forecast.room_s(rows, total_tokens // block_size + 1 - overlap)
    held = whole * block_size
    ways.own_tokens, ways.tokens = prompt_tokens - held, prompt_tokens - ways.prefill_overlap * block_size
    ways.own_s = compute_s(rows, ways.own_tokens, held)
    ways.first_s = ways.own_s + rows[at.FIRST_S]
    return ways


def joined(parts: list[Ways]) -> Ways:
    """All of them in a row."""
    if len(parts) == 1:
        return parts[0]
    made = Ways(
        np.concatenate([part.decode for part in parts]), np.concatenate([part.rows for part in parts], axis=1),
        np.concatenate([part.overlap for part in parts]),
    )  # fmt: skip
    ends = list(accumulate(map(len, parts)))
    for name in _OWN:
        values: list[Floats | None] = [getattr(part, name) for part in parts]
        if any(value is not None for value in values):
            filled: Floats | Slots = np.full(ends[-1], -1) if name in _SLOTS else np.zeros(ends[-1])
            for value, end in zip(values, ends, strict=True):
                if value is not None:
                    filled[end - len(value) : end] = value
            setattr(made, name, filled)
    return made


_SLOTS = ("prefill", "pull_slot")
_OWN = tuple(name for name in Ways.__slots__ if name not in ("decode", "overlap", "rows"))
