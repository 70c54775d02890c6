"""Names of tenants by number, in a file that only grows: what lies on a disk says by number whose it is."""

import json
import os
from pathlib import Path
from threading import Lock


class TenantNames:
    """A line for each name, a JSON string; the first one has number 1, and 0 is nobody.

    Raises:
        OSError: the file can't be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._names = [""]
        self._lock = Lock()
        sound_bytes = 0
        for line in path.read_bytes().splitlines(keepends=True):
            name = _name_in(line)
            if name is None:
                break
            self._names.append(name)
            sound_bytes += len(line)
        os.ftruncate(self._fd, sound_bytes)  # a half-written last line, or damage: numbers from there on are given anew
        self._numbers = {name: number for number, name in enumerate(self._names)}

    def number(self, name: str) -> int:
        """The number of a name, which has one from now on."""
        with self._lock:
            number = self._numbers.get(name)
            if number is None:
                os.write(self._fd, json.dumps(name).encode() + b"\n")
                number = self._numbers[name] = len(self._names)
                self._names.append(name)
            return number

    def name(self, number: int) -> str | None:
        """None: nobody has this number."""
        return self._names[number] if number < len(self._names) else None

    def close(self) -> None:
        os.close(self._fd)


def _name_in(line: bytes) -> str | None:
    if not line.endswith(b"\n"):
        return None
    try:
        name = json.loads(line)
    except ValueError:
        return None
    return name if isinstance(name, str) else None
