"""How far down a prompt each worker's blocks reach without a hole.

One would like to assume that masks only shrink with depth, since a block is of use only behind the blocks before it,
and to probe a few depths. But a worker's holdings can have holes: an engine may evict a block of the middle while a
request still uses the one behind it (two requests computed the same head, the copy that can be found is let go
first), other engines evict in any order, and events of a stale source are missing. A probe behind a hole would credit
a worker with blocks that it can't use. So every depth down to the end of the longest run is looked up; only the
running intersection of the masks is sure to shrink, and in that one the ends of runs are found by bisection.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, repeat
from operator import and_

# Look-ups are done in stretches that double, so that at most about as many are wasted as were needed, and stop
# growing where the fixed cost of a stretch no longer shows.
_FIRST_STRETCH = 8
_LONGEST_STRETCH = 256


def descend(masks: Mapping[int, int], hashes: Sequence[int]) -> list[tuple[int, int]]:
    """Where runs of held blocks end: `(depth, mask)`, shallowest first; no mask is 0 and no bit occurs twice.

    `masks` maps a sequence hash to the bits of the workers that hold the block; bit w of a result at `depth` says that
    worker w holds the blocks 0 to depth-1 and not the one behind them.
    """
    ends: list[tuple[int, int]] = []
    look_up, num_blocks = masks.get, len(hashes)
    held = look_up(hashes[0], 0) if num_blocks else 0
    depth, stretch = 1, _FIRST_STRETCH
    while held:
        found = map(look_up, hashes[depth : depth + stretch], repeat(0))
        runs = list(accumulate(found, and_, initial=held))
        survivors, offset = runs[-1], 0
        while held != survivors:
            offset = bisect_left(runs, True, offset, key=held.__ne__)
            ends.append((depth + offset - 1, held & ~runs[offset]))
            held = runs[offset]
        depth += len(runs) - 1
        if held and depth == num_blocks:
            ends.append((depth, held))
            break
        stretch = min(2 * stretch, _LONGEST_STRETCH)
    return ends
