"""Who holds which block of one tier: masks of workers by sequence hash, and how far prompts are held without a hole.

A block's mask says who holds it. Whether a worker also holds all blocks before it is a second mask, its *whole* mask:
that one only shrinks with depth, so a match probes a few depths. It is kept up to date by every store and remove, holes
included, which takes to know each block's parent. Events don't tell it, but prompts do: the first match that comes
through a block looks at every block (`walk`) and links it to the one before; from then on matches gallop through it.

Invariants, where `parents` has exactly the linked blocks:
- a linked block has a holder, and its parent is linked, or it begins a prompt;
- its whole mask is its mask, but for workers that are not in its parent's whole mask.

It relies on a sequence hash naming its whole prefix. Callers whose hashes don't get wrong depths for the prompts
concerned; where the contradiction shows, all links are forgotten and made anew.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate, chain, islice, pairwise, repeat
from operator import and_

from armature.index.descent import descend, walk

# Ends of prompts matched of late, of which eviction keeps the blocks; about what a router sees in a minute.
_MOST_RECENT = 65_536


class Holders:
    """Masks of one tier. Bits are given by the caller, who sees to it that one is only given anew when it is unset."""

    def __init__(self) -> None:
        self.masks: dict[int, int] = {}
        """Who holds a block; in the order of eviction."""
        self.users = 0
        """Who may hold any: who has stored some since it was last cleared."""
        self.parents: dict[int, int | None] = {}
        self._whole: dict[int, int] = {}
        self._children: dict[int, int | set[int]] = {}
        """A linked block's linked successors; most have one."""
        self._torn = 0
        """Who may hold a linked block without all before it: has done so since it was last cleared."""
        self._recent: OrderedDict[int, None] = OrderedDict()

    def store(self, bit: int, hashes: Sequence[int]) -> int:
        """A worker holds blocks now; how many it did not hold before."""
        self.users |= bit
        masks, whole = self.masks, self._whole
        before = len(masks)
        # Most blocks have one holder: they share its mask instead of owning an equal one.
        found = list(map(masks.setdefault, hashes, repeat(bit)))
        new = len(masks) - before
        if new == len(found):
            return new
        # Mostly a head that others hold, and behind it what nobody held: only the head is looked at one by one.
        others = len(found) - found.count(bit)
        head = others if found[others:].count(bit) == len(found) - others else len(found)
        for block, mask in zip(hashes[:head], found[:head], strict=True):
            if not mask & bit and not masks[block] & bit:
                masks[block] = mask | bit
                new += 1
                if block in whole:
                    self._join(block, bit, mask)
        return new

    def remove(self, bit: int, hashes: Iterable[int]) -> int:
        """A worker no longer holds blocks; those that it does not hold are ignored. How many it did hold."""
        return self._remove(bit, hashes, is_all=False)

    def clear(self, bit: int, blocks: Iterable[int]) -> None:
        """A worker holds nothing any more; `blocks` are all that it held."""
        self._remove(bit, blocks, is_all=True)
        self.users &= ~bit
        self._torn &= ~bit

    def match(self, hashes: Sequence[int]) -> list[tuple[int, int]]:
        """Where runs of held blocks end, as `descend` gives them."""
        ends = descend(self._whole, hashes)
        depth = ends[-1][0] if ends else 0
        if depth < len(hashes) and (behind := self.masks.get(hashes[depth])) and hashes[depth] not in self._whole:
            # The first block that is not linked; all that end here may go on behind it.
            held = ends[-1][1] if ends else behind
            if behind & held:
                ends[-1:] = self._explore(hashes, depth, held)
        if ends:
            self._note(hashes[ends[-1][0] - 1])
        return ends

    def evict(self, num_blocks: int) -> list[tuple[int, int]]:
        """Forget that many blocks, or all if there are fewer: `(block, mask)` of each.

        Those leave that were stored or matched the longest ago. A match counts at the next eviction, so those between
        two evictions count as being of the same time.
        """
        masks, evicted = self.masks, list[tuple[int, int]]()
        for block in self._matched_of_late():
            masks[block] = masks.pop(block)
        self._recent.clear()
        for block in list(islice(masks, num_blocks)):
            evicted.append((block, masks.pop(block)))
        self._unlink([block for block, _ in evicted])
        return evicted

    def check(self) -> None:
        """Assert the invariants. For tests; takes time proportional to the index."""
        assert all(self.masks.values()), "an empty mask"
        assert self.parents.keys() == self._whole.keys() <= self.masks.keys(), "a linked block without a holder"
        children: dict[int, set[int]] = {}
        for block, parent in self.parents.items():
            if parent is not None:
                children.setdefault(parent, set()).add(block)
            above = -1 if parent is None else self._whole[parent]
            assert self._whole[block] == self.masks[block] & above, "a whole mask is wrong"
            assert not self.masks[block] & ~self._whole[block] & ~self._torn, "a torn worker is not known to be"
        kept = {block: own if isinstance(own, set) else {own} for block, own in self._children.items()}
        assert kept == children, "parents and children disagree"

    def _remove(self, bit: int, hashes: Iterable[int], *, is_all: bool) -> int:
        masks, whole, unheld, kept = self.masks, self._whole, list[int](), 0
        look_up = masks.get
        for block in hashes:
            mask = look_up(block)
            if mask == bit:
                del masks[block]
                unheld.append(block)
            elif mask is not None and mask & bit:
                masks[block] = mask ^ bit
                kept += 1
                if block in whole:
                    self._leave(block, bit, mask, is_all)
        self._unlink(unheld)
        return kept + len(unheld)

    def _join(self, block: int, bit: int, mask: int) -> None:
        """A worker has come to a linked block whose mask was `mask`."""
        parent, whole, masks = self.parents[block], self._whole, self.masks
        if parent is not None and not whole[parent] & bit:
            self._torn |= bit
            return
        # Equal masks are one object: with thousands of workers a mask takes a kilobyte.
        whole[block] = masks[block] if whole[block] == mask else whole[block] | bit
        # The last block of a common head has thousands of successors: few workers need a look at them.
        left = self._successors(block) if self._torn & bit else []
        while left:
            block = left.pop()
            if masks[block] & bit:
                joined = whole[block] | bit
                whole[block] = masks[block] if joined == masks[block] else joined
                left += self._successors(block)

    def _leave(self, block: int, bit: int, mask: int, is_all: bool) -> None:
        """A worker leaves a linked block whose mask was `mask`: what it keeps behind it, if any, is of no use to it."""
        whole = self._whole
        if not whole[block] & bit:
            return
        whole[block] = self.masks[block] if whole[block] == mask else whole[block] ^ bit
        left = [] if is_all else self._successors(block)
        while left:
            block = left.pop()
            if whole[block] & bit:
                self._torn |= bit
                whole[block] ^= bit
                left += self._successors(block)

    def _successors(self, block: int) -> list[int]:
        own = self._children.get(block)
        return [] if own is None else [own] if isinstance(own, int) else list(own)

    def _explore(self, hashes: Sequence[int], depth: int, held: int) -> list[tuple[int, int]]:
        """Go on behind the last linked block, look at every block and link those that anybody holds."""
        look_up, found = self.masks.get, list[int]()

        def masks_of(part: Sequence[int]) -> list[int]:
            masks = list(map(look_up, part, repeat(0)))
            found.extend(masks)
            return masks

        ends = walk(masks_of, hashes, depth, held)
        deepest = ends[-1][0]
        self._link(None if not depth else hashes[depth - 1], hashes[depth:deepest], found[: deepest - depth], held)
        return ends

    def _link(self, parent: int | None, blocks: Sequence[int], masks: list[int], held: int) -> None:
        """Link blocks that follow one another behind `parent`, in whose whole mask are `held`."""
        runs = list(accumulate(masks, and_, initial=held))[1:]
        whole, parents, children = self._whole, self.parents, self._children
        linked = len(whole)
        if runs != masks:
            for mask, run in zip(masks, runs, strict=True):
                self._torn |= mask & ~run
        whole.update(zip(blocks, masks if runs == masks else runs, strict=True))
        if len(whole) != linked + len(blocks):
            # One of them follows another block in another prompt.
            for links in (whole, parents, children, self._recent):
                links.clear()
            return
        parents[blocks[0]] = parent
        parents.update(zip(blocks[1:], blocks[:-1], strict=True))
        children.update(pairwise(blocks))
        if parent is not None:
            own = children.setdefault(parent, blocks[0])
            if isinstance(own, set):
                own.add(blocks[0])
            elif own != blocks[0]:
                children[parent] = {own, blocks[0]}

    def _unlink(self, blocks: Iterable[int]) -> None:
        """Forget the links of blocks and of all behind them."""
        whole, parents, children = self._whole, self.parents, self._children
        for first in blocks:
            if first not in whole:
                continue
            parent = parents[first]
            if parent is not None:
                own = children[parent]
                if own == first:
                    del children[parent]
                elif isinstance(own, set):
                    own.remove(first)
                    if not own:
                        del children[parent]
            left = [first]
            while left:
                block = left.pop()
                del whole[block], parents[block]
                behind = children.pop(block, None)
                if isinstance(behind, int):
                    left.append(behind)
                elif behind is not None:
                    left += behind

    def _note(self, block: int) -> None:
        recent = self._recent
        recent[block] = None
        recent.move_to_end(block)
        if len(recent) > _MOST_RECENT:
            recent.popitem(last=False)

    def _matched_of_late(self) -> list[int]:
        """What is linked of the prompts matched of late: the latest prompt last, and heads behind their tails."""
        seen, prompts = set[int](), list[list[int]]()
        for end in reversed(self._recent):
            prompt: list[int] = []
            block: int | None = end
            while block is not None and block in self.parents and block not in seen:
                seen.add(block)
                prompt.append(block)
                block = self.parents[block]
            prompts.append(prompt)
        return list(chain.from_iterable(reversed(prompts)))
