"""What is told of workers while a run goes on, for its timeline."""

from collections.abc import Sequence
from dataclasses import dataclass

from armature.scheduling.request import EngineLoad
from armature.sim.site import Site
from armature.sim.timeline import Timeline

_LEVELS: tuple[str, ...] = ("waiting", "running")


@dataclass(slots=True)
class _Known:
    """What a worker had last."""

    waiting: int = 0
    running: int = 0
    busy_s: float = 0.0


class Levels:
    """Keeps the sums over all workers and when they last changed."""

    def __init__(self, worker_ids: Sequence[str]) -> None:
        self.timeline = Timeline([*_LEVELS, *worker_ids])
        self._known = {worker_id: _Known() for worker_id in worker_ids}
        self._sums = dict.fromkeys(_LEVELS, 0)
        self._since_s = dict.fromkeys(_LEVELS, 0.0)

    def on_step(self, site: Site, load: EngineLoad, now_s: float) -> None:
        """A worker has told its load, most likely because a step has ended."""
        known, busy_s = self._known[site.worker_id], site.engine.busy_s
        if busy_s > known.busy_s:
            self.timeline.hold(site.worker_id, 1.0, now_s - (busy_s - known.busy_s), now_s)
            known.busy_s = busy_s
        if load.waiting_seqs != known.waiting:
            self._change("waiting", load.waiting_seqs - known.waiting, now_s)
            known.waiting = load.waiting_seqs
        if load.running_seqs != known.running:
            self._change("running", load.running_seqs - known.running, now_s)
            known.running = load.running_seqs

    def on_death(self, site: Site, now_s: float) -> None:
        """A worker has nothing any more."""
        known = self._known[site.worker_id]
        self._change("waiting", -known.waiting, now_s)
        self._change("running", -known.running, now_s)
        self._known[site.worker_id] = _Known()

    def _change(self, name: str, change: int, now_s: float) -> None:
        value, since_s = self._sums[name], self._since_s[name]
        if value and now_s > since_s:
            self.timeline.hold(name, value, since_s, now_s)
        self._sums[name], self._since_s[name] = value + change, now_s
