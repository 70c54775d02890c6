"""Where the last turn of each conversation went. Bounded: the one longest silent is forgotten first."""

from collections import OrderedDict

from armature.routing.snapshot import Session

_MOST = 100_000


class Sessions:
    """Remembers one worker a session."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id) if session_id else None

    def put(self, session_id: str, worker_id: str, now_s: float) -> None:
        """A turn was placed; without a session id nothing is remembered."""
        if not session_id:
            return
        self._sessions[session_id] = Session(worker_id, now_s)
        self._sessions.move_to_end(session_id)
        if len(self._sessions) > self._most:
            self._sessions.popitem(last=False)
