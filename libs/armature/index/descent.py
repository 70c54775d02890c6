"""How far down a prompt each worker's blocks reach without a hole, from masks of workers.

`descend` is for masks that only shrink with depth and probes a few of them. `walk` is for any masks, and looks at every
block: a worker may hold a block and not the one before it, since an engine may evict a block of the middle while a
request still uses the one behind it, and events may be missing. `go_on` is a walk of workers who start at different
depths.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from operator import and_

Ends = list[tuple[int, int]]
"""`(depth, mask)`, shallowest first: whose run of blocks is that long. No mask is 0 and no bit occurs twice."""

LookUp = Callable[[Sequence[int]], list[int]]
"""Gives the masks of consecutive blocks."""

# A walk's look-ups are done in stretches that double, so that at most about as many are wasted as were needed, and stop
# growing where the fixed cost of a stretch no longer shows.
_FIRST_STRETCH = 8
_LONGEST_STRETCH = 256

# Gallops start with this step: most prompts share more than a few blocks with something that is held.
_FIRST_STEP = 8


def descend(masks: Mapping[int, int], hashes: Sequence[int]) -> Ends:
    """Where runs of held blocks end.

    `masks` maps a sequence hash to the bits of the workers that hold the block and all before it, so that along a
    prompt they only shrink; bit w of a result at `depth` says that worker w holds the blocks 0 to depth-1 and not the
    one behind them. Takes about log2(depth) look-ups an end.
    """
    if not hashes:
        return []
    look_up, last = masks.get, len(hashes) - 1
    ends: Ends = []
    low, held, step = 0, look_up(hashes[0], 0), _FIRST_STEP
    while held:
        if low == last:
            ends.append((last + 1, held))
            break
        high = min(low + step, last)
        survivors = look_up(hashes[high], 0) & held
        if survivors != held:
            _split(look_up, hashes, (low, held, high, survivors), ends)
        low, held, step = high, survivors, 2 * step
    return ends


def _split(
    look_up: Callable[[int, int], int],
    hashes: Sequence[int],
    stretch: tuple[int, int, int, int],
    ends: Ends,
) -> None:
    """Append the ends between two blocks, of which the second is held by fewer."""
    low, held, high, survivors = stretch
    while held != survivors:
        # Of all ends in the stretch the first: the last block that everybody has who has the first one.
        below, above, at_above = low, high, survivors
        while above - below > 1:
            middle = (below + above) >> 1
            found = look_up(hashes[middle], 0) & held
            if found == held:
                below = middle
            else:
                above, at_above = middle, found
        ends.append((above, held & ~at_above))
        low, held = above, at_above


def walk(look_up: LookUp, hashes: Sequence[int], depth: int, held: int) -> Ends:
    """Where runs end, for masks of which nothing is known: every block up to the end of the longest run is looked up.

    `held` are the workers that hold all blocks before `depth`; the result is `descend`'s, of those.
    """
    ends: Ends = []
    stretch, num_blocks = _FIRST_STRETCH, len(hashes)
    while held:
        if depth == num_blocks:
            ends.append((depth, held))
            break
        runs = list(accumulate(look_up(hashes[depth : depth + stretch]), and_, initial=held))
        survivors, offset = runs[-1], 0
        while held != survivors:
            offset = bisect_left(runs, True, offset, key=held.__ne__)
            ends.append((depth + offset - 1, held & ~runs[offset]))
            held = runs[offset]
        depth += len(runs) - 1
        stretch = min(2 * stretch, _LONGEST_STRETCH)
    return ends


def go_on(look_up: LookUp, hashes: Sequence[int], starts: Mapping[int, int]) -> dict[int, int]:
    """Where runs end that have come so far already: masks by depth, of all workers of `starts`.

    Takes a look at the block behind each start, and at every block behind which somebody goes on.
    """
    num_blocks = len(hashes)
    ends = dict(starts)
    depths = sorted([depth for depth in starts if depth < num_blocks])
    held, moving = 0, list[tuple[int, int]]()
    for depth, mask in zip(depths, look_up([hashes[depth] for depth in depths]), strict=True):
        going = mask & starts[depth]
        if going:
            moving.append((depth, going))
            ends[depth] ^= going
    stops = [*(depth for depth, _ in moving), num_blocks][1:]
    for (depth, going), until in zip(moving, stops, strict=True):
        held |= going
        runs = walk(look_up, hashes if until == num_blocks else hashes[:until], depth, held)
        held = runs.pop()[1] if runs[-1][0] == until else 0
        for end, mask in runs:
            ends[end] = ends.get(end, 0) | mask
    if held:
        ends[num_blocks] = ends.get(num_blocks, 0) | held
    return ends
