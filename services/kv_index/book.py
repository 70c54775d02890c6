"""What is known: the index, how far each source can be trusted, and the followers, who are told of every change."""

import asyncio
import time
from collections.abc import Sequence

from armature.index.change import Change, ChangeKind
from armature.index.prefix_index import PrefixIndex
from armature.index.trust import Trust, TrustState
from armature.runtime.index_changes import told_change
from armature.runtime.index_followers import Followers
from armature.v1.kv_index_pb2 import WorkerChange


class Book:
    """Every change goes through here, so that index, trust and followers never differ."""

    def __init__(self, followers: Followers) -> None:
        self.index = PrefixIndex()
        self.trust = Trust()
        self.followers = followers
        self.changed = asyncio.Event()
        """Set with every change; whoever waits for one clears it first."""

    def enter(self, changes: Sequence[Change], told: Sequence[WorkerChange] | None = None) -> None:
        """Make changes; `told` is the same in the wire's words, where that exists already."""
        if not changes:
            return
        now_s = time.monotonic()
        for change in changes:
            self.index.apply(change)
            self.trust.apply(change, now_s)
        self.followers.tell(told if told is not None else [told_change(change) for change in changes])
        self.changed.set()

    def mark(self, worker_id: str, state: TrustState) -> None:
        """Note how far a worker's entry can be trusted."""
        if worker_id not in self.index or self.trust.state(worker_id) is not state:
            self.enter([Change(ChangeKind(state.value), worker_id)])

    def drop(self, worker_id: str) -> None:
        """A worker is gone."""
        self.enter([Change(ChangeKind.DROPPED, worker_id)])
