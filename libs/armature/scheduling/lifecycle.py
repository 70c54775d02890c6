"""The life of a request in an engine: states, events and the one table that joins them.

```
 WAITING --admit--> PREFILLING --first token--> DECODING --finish--> FINISHED
  |   ^  <-----preempt-----'------------------------'
  |   `--fetched-- FETCHING <--reserve-- WAITING          (the prompt's blocks come from another worker)
  `--hold--> HOLDING <--hold-- PREFILLING                 (the prompt's blocks go to another worker)
```
"""

from enum import Enum


class State(Enum):
    WAITING = "waiting"
    """Queued. May hold blocks that were fetched or found."""
    FETCHING = "fetching"
    """Its blocks are being written by a transport, so they can't be taken away."""
    PREFILLING = "prefilling"
    DECODING = "decoding"
    HOLDING = "holding"
    """Computes no more; its staged blocks are kept for a reader."""
    FINISHED = "finished"


class Event(Enum):
    RESERVE = "reserve"
    FETCHED = "fetched"
    ADMIT = "admit"
    FIRST_TOKEN = "first token"
    PREEMPT = "preempt"
    HOLD = "hold"
    FINISH = "finish"


TABLE = {
    (State.WAITING, Event.RESERVE): State.FETCHING,
    (State.WAITING, Event.ADMIT): State.PREFILLING,
    (State.WAITING, Event.HOLD): State.HOLDING,
    (State.WAITING, Event.FINISH): State.FINISHED,
    (State.FETCHING, Event.FETCHED): State.WAITING,
    (State.PREFILLING, Event.FIRST_TOKEN): State.DECODING,
    (State.PREFILLING, Event.PREEMPT): State.WAITING,
    (State.PREFILLING, Event.HOLD): State.HOLDING,
    (State.PREFILLING, Event.FINISH): State.FINISHED,
    (State.DECODING, Event.PREEMPT): State.WAITING,
    (State.DECODING, Event.FINISH): State.FINISHED,
    (State.HOLDING, Event.FINISH): State.FINISHED,
}


def advance(state: State, event: Event) -> State:
    """The state after `event`.

    Raises:
        ValueError: the event can't happen in this state.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise ValueError(f"a request that is {state.value} can't be told '{event.value}'") from None
