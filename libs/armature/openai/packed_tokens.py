"""Log probabilities of many tokens, in arrays: as tuples they take ten times as much, and leave holes in the heap."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

TopTokens = Sequence[tuple[int, float]]
"""(token id, log probability): the chosen token first, then the likeliest ones in falling order."""


class PackedTokens(Sequence[TopTokens]):
    """Holds 32-bit log probabilities, as workers tell them."""

    def __init__(self) -> None:
        self._token_ids = array("I")
        self._logprobs = array("f")
        self._ends = array("Q")

    def extend(self, tokens: Iterable[TopTokens]) -> None:
        for token in tokens:
            for token_id, logprob in token:
                self._token_ids.append(token_id)
                self._logprobs.append(logprob)
            self._ends.append(len(self._token_ids))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[TopTokens]:
        begin = 0
        for end in self._ends:
            yield [*zip(self._token_ids[begin:end], self._logprobs[begin:end], strict=True)]
            begin = end

    @overload
    def __getitem__(self, index: int) -> TopTokens: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TopTokens]: ...
    def __getitem__(self, index: int | slice) -> TopTokens | Sequence[TopTokens]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        end = self._ends[index]
        place = index % len(self._ends)
        begin = self._ends[place - 1] if place else 0
        return [*zip(self._token_ids[begin:end], self._logprobs[begin:end], strict=True)]
