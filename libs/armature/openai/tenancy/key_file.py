"""API keys in a YAML file, for one machine or where configuration is mounted.

A file that can't be used any more changes nothing: the keys that were read last go on, and the log says why.
"""

import asyncio
import fcntl
import logging
from pathlib import Path

import msgspec
import yaml

from armature.openai.tenancy.doorkeeper import Doorkeeper
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, TenantEntry
from armature.runtime.errors import StartError, UnavailableError

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0


class KeyFile:
    """One file; whoever changes it replaces it, so that nobody reads half of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> KeyTable:
        """The keys.

        Raises:
            StartError: they can't be read, with where and why.
        """
        try:
            self._seen = self._state()
            return KeyTable(parse_book(self._path.read_text()))
        except OSError as error:
            raise StartError(
                f"can't read the API keys in {self._path} ({error.strerror}): set another --keys"
            ) from error
        except ValueError as error:
            raise StartError(f"the API keys in {self._path} can't be used: {error}") from error

    async def follow(self, doorkeeper: Doorkeeper, interval_s: float = LOOK_INTERVAL_S) -> None:
        """Tell the doorkeeper of changes until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                if self._state() == self._seen:
                    continue
                doorkeeper.table = await asyncio.to_thread(self.read)
                log.info("API keys read again: %d", len(doorkeeper.table.book.keys))
            except (OSError, StartError) as error:
                if self._seen is not None:
                    log.error("the API keys stay as they were: %s", error)
                if isinstance(error, OSError):
                    self._seen = None

    async def put(self, kind: str, name: str, entry: KeyEntry | TenantEntry | None) -> KeyTable:
        """Write a key or tenant, or delete it; all that is in the file then. Replaces it; comments in it are lost.

        Raises:
            UnavailableError: it can't be written.
        """
        try:
            return KeyTable(await asyncio.to_thread(self._put, f"{kind}s", name, entry))
        except (OSError, ValueError) as error:
            raise UnavailableError(f"the API keys in {self._path} can't be changed: {error}") from error

    def _put(self, part: str, name: str, entry: KeyEntry | TenantEntry | None) -> KeyBook:
        with self._path.with_name(f"{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # other gateways and commands may be at it
            book = msgspec.to_builtins(parse_book(self._path.read_text()))
            book[part].pop(name, None)
            if entry is not None:
                book[part][name] = msgspec.to_builtins(entry)
            fresh = self._path.with_name(f"{self._path.name}.new")
            fresh.write_text(yaml.safe_dump(book, sort_keys=False))
            fresh.chmod(self._path.stat().st_mode)
            fresh.replace(self._path)
            return msgspec.convert(book, KeyBook)

    def _state(self) -> tuple[int, int, int]:
        """Changes whenever the file does; a mounted one is a link that changes."""
        state = self._path.stat()
        return state.st_ino, state.st_mtime_ns, state.st_size


def parse_book(text: str) -> KeyBook:
    """The keys in a YAML text.

    Raises:
        ValueError: it is no YAML, or says something that is not known; the message names the place.
    """
    try:
        return msgspec.convert(yaml.safe_load(text) or {}, KeyBook)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(" ".join(str(error).split())) from error
