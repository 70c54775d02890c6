"""What became of every request, in columns: some 70 bytes each, so that a million of them are no burden."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]


@dataclass(slots=True)
class Outcome:
    """What became of one request; times from the trace's start."""

    arrival_s: float
    prompt_tokens: int
    worker_id: str = ""
    """The last that it was placed on; likewise `prefill_id`, empty if the prompt was computed there."""
    prefill_id: str = ""
    first_token_s: float = -1.0
    finish_s: float = -1.0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were found in the cache of the worker that computed the prompt, or that decodes."""
    refusals: int = 0
    """How often the router sent it away to come again."""
    migrations: int = 0
    """How often its worker failed and another took over."""
    error: str = ""
    """Why it was not served to its end."""


_TIMES = ("arrival_s", "first_token_s", "finish_s")
_COUNTS = ("prompt_tokens", "output_tokens", "cached_tokens", "refusals", "migrations")


class Record(Sequence[Outcome]):
    """Outcomes by position in the order of arrival."""

    def __init__(self) -> None:
        self.ended = 0
        self._times = {name: array("d") for name in _TIMES}
        self._counts = {name: array("i") for name in _COUNTS}
        self._workers = (array("i"), array("i"))
        self._names: dict[str, int] = {"": 0}
        self._errors: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._workers[0])

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Outcome]: ...
    def __getitem__(self, index: int | slice) -> Outcome | Sequence[Outcome]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        names = list(self._names)
        times = {name: column[index] for name, column in self._times.items()}
        counts = {name: column[index] for name, column in self._counts.items()}
        worker_id, prefill_id = (names[column[index]] for column in self._workers)
        return Outcome(
            **times, **counts, worker_id=worker_id, prefill_id=prefill_id, error=self._errors.get(index, "")
        )  # fmt: skip

    def __iter__(self) -> Iterator[Outcome]:
        return (self[index] for index in range(len(self)))

    # --- what happens

    def arrive(self, now_s: float, prompt_tokens: int) -> int:
        """A request has come; its position."""
        for name, times in self._times.items():
            times.append(now_s if name == "arrival_s" else -1.0)
        for name, counts in self._counts.items():
            counts.append(prompt_tokens if name == "prompt_tokens" else 0)
        for workers in self._workers:
            workers.append(0)
        return len(self) - 1

    def place(self, position: int, worker_id: str, prefill_id: str) -> None:
        for column, name in zip(self._workers, (worker_id, prefill_id), strict=True):
            column[position] = self._names.setdefault(name, len(self._names))

    def refuse(self, position: int) -> None:
        self._counts["refusals"][position] += 1

    def migrate(self, position: int) -> None:
        self._counts["migrations"][position] += 1

    def first_token(self, position: int, now_s: float, cached_tokens: int) -> None:
        self._times["first_token_s"][position] = now_s
        self._counts["cached_tokens"][position] = cached_tokens

    def finish(self, position: int, now_s: float, output_tokens: int, error: str = "") -> None:
        self._times["finish_s"][position] = now_s
        self._counts["output_tokens"][position] = output_tokens
        if error:
            self._errors[position] = error
        self.ended += 1

    # --- for whoever sums up

    def times(self, name: str) -> Column:
        return np.array(self._times[name])

    def counts(self, name: str) -> NDArray[np.int64]:
        return np.array(self._counts[name], dtype=np.int64)

    def is_served(self) -> NDArray[np.bool_]:
        served = np.ones(len(self), dtype=np.bool_)
        served[list(self._errors)] = False
        return served
