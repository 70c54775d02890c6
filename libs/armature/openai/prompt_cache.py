"""Chats to tokens and block digests, where what was met before costs a look-up.

Chats repeat: the system prompt and earlier turns come again with every turn. A special token ends whatever the
tokenizer looks at, so a chat may be cut before any of them. Cut pieces are kept in a tree, each with its tokens and
the digests of the blocks that it completes: what a prompt shares with others is neither tokenized nor hashed again.

Invariant: the result is that of tokenizing and hashing the whole. Prompts with different roots, those of different
tenants, share nothing, so nobody can tell by the time whether another has sent the same.
"""

import itertools
import re
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.openai.encoder import Encoder

MIN_PIECE_CHARACTERS = 512
"""Of what is kept by itself: tokenizing less takes no longer than looking for it."""
_NODE_BYTES, _DIGEST_BYTES = 600, 64
"""About what Python needs for a node besides its text and tokens, and for a digest."""


@dataclass(slots=True)
class _Piece:
    """A part of a prompt, from one cut to the next."""

    text: str
    token_ids: "array[int]"
    digests: list[BlockDigest]
    """Of the blocks that end in this piece."""

    @property
    def size_bytes(self) -> int:
        ids = self.token_ids
        return _NODE_BYTES + sys.getsizeof(self.text) + ids.itemsize * len(ids) + _DIGEST_BYTES * len(self.digests)


class _Node:
    """A piece behind a certain beginning; the root has none."""

    __slots__ = ("children", "parent", "piece")

    def __init__(self, piece: _Piece | None, parent: "_Node | None") -> None:
        self.piece = piece
        self.parent = parent
        self.children: dict[str, _Node] = {}


class PromptCache:
    """Holds the most recently used pieces of a model's prompts up to `max_bytes`. Threads may share it.

    `cut` matches where text may be cut; None: nowhere, and nothing is kept.
    """

    def __init__(
        self, encoder: Encoder, hasher: BlockHasher, cut: "re.Pattern[str] | None", max_bytes: int = 64 * 1024 * 1024
    ) -> None:
        self._encoder = encoder
        self._hasher = hasher
        self._cut = cut
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._roots: dict[BlockDigest, _Node] = {}
        self._nodes: OrderedDict[_Node, BlockDigest] = OrderedDict()
        """With their roots, the least recently used first; a node is always more recent than those below it."""
        self._lock = threading.Lock()

    def encode(self, root: BlockDigest, text: str) -> "tuple[array[int], list[BlockDigest]]":
        """Token ids of `text` and the digests of their whole blocks, the first one chained to `root`."""
        cuts = [0, *self._cuts(text)]
        texts = [text[start:end] for start, end in itertools.pairwise(cuts)]
        path = self._known(root, texts)
        token_ids, digests = array("I"), list[BlockDigest]()
        for piece in path:
            token_ids.extend(piece.token_ids)
            digests += piece.digests
        for new in texts[len(path) :]:
            path.append(self._add(new, root, token_ids, digests))
        self._add(text[cuts[-1] :], root, token_ids, digests)
        if path:
            self._keep(root, path)
        return token_ids, digests

    def _cuts(self, text: str) -> Iterator[int]:
        """Where to cut, as far as it lies: wherever two texts begin with the same pieces they are cut alike."""
        if self._cut is None or len(text) < MIN_PIECE_CHARACTERS:
            return
        last = 0
        for match in self._cut.finditer(text):
            if match.start() - last >= MIN_PIECE_CHARACTERS:
                last = match.start()
                yield last

    def _add(self, text: str, root: BlockDigest, token_ids: "array[int]", digests: list[BlockDigest]) -> _Piece:
        """Append what `text` adds to `token_ids` and `digests`."""
        new = self._encoder.encode(text)
        token_ids.extend(new)
        hashed = len(digests) * self._hasher.block_size
        completed = self._hasher.extend(digests[-1] if digests else root, token_ids[hashed:])
        digests += completed
        return _Piece(text, new, completed)

    def _known(self, root: BlockDigest, texts: list[str]) -> list[_Piece]:
        """The pieces at the beginning that are kept."""
        pieces: list[_Piece] = []
        with self._lock:
            node = self._roots.get(root)
            for text in texts:
                node = node and node.children.get(text)
                if node is None or node.piece is None:
                    break
                pieces.append(node.piece)
        return pieces

    def _keep(self, root: BlockDigest, path: list[_Piece]) -> None:
        """Have these, one behind the other, as the most recently used."""
        with self._lock:
            node = self._roots.setdefault(root, _Node(None, None))
            nodes: list[_Node] = []
            for piece in path:
                child = node.children.get(piece.text)
                if child is None:
                    child = node.children[piece.text] = _Node(piece, node)
                    self.size_bytes += piece.size_bytes
                nodes.append(child)
                node = child
            for node in reversed(nodes):
                self._nodes[node] = root
                self._nodes.move_to_end(node)
            while self.size_bytes > self._max_bytes:
                self._forget(*self._nodes.popitem(last=False))

    def _forget(self, node: _Node, root: BlockDigest) -> None:
        assert node.parent is not None
        assert node.piece is not None
        del node.parent.children[node.piece.text]
        self.size_bytes -= node.piece.size_bytes
        if node.parent.piece is None and not node.parent.children:
            del self._roots[root]
