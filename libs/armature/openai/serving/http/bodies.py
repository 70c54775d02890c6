"""How many bytes of request bodies are here at once: while they are read, and until their requests have been answered.

One body has a bound of its own; without this one, many large ones together would take all memory. Half of the room is
for bodies that are not whole yet, so that clients that never end theirs leave room for those that do.
"""

from typing import Self

from armature.openai.errors import overloaded


class BodyRoom:
    """The room of all requests."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self.taken_bytes = 0
        self.unfinished_bytes = 0
        """Of these, what belongs to bodies that are still being read."""

    def body(self) -> "Body":
        """Room for one body, which is given back when it is left as a context."""
        return Body(self)

    def check(self) -> None:
        """Raise 429 if more is here than may."""
        if self.taken_bytes > self._most_bytes or self.unfinished_bytes > self._most_bytes // 2:
            raise overloaded("Too many large requests are here already; try again later")


class Body:
    """One request's."""

    __slots__ = ("_is_whole", "_room", "_size_bytes")

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._size_bytes = 0
        self._is_whole = False

    def grow(self, size_bytes: int, *, is_last: bool = False) -> None:
        """So much more has been read, perhaps the rest.

        Raises:
            ApiError: 429, there is no room for it.
        """
        room = self._room
        self._size_bytes += size_bytes
        room.taken_bytes += size_bytes
        room.unfinished_bytes += size_bytes
        if is_last:
            self._end()
        room.check()

    def _end(self) -> None:
        if not self._is_whole:
            self._is_whole = True
            self._room.unfinished_bytes -= self._size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._room.taken_bytes -= self._size_bytes
        self._size_bytes = 0
